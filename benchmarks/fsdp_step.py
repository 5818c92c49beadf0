"""One policy update by one process, by one rank and by two ranks of the sharded path.

    python benchmarks/fsdp_step.py
    python benchmarks/fsdp_step.py --peer-python VENV_WITH_TRL/bin/python
    python benchmarks/fsdp_step.py --shape smollm2-135m --rounds 1 --updates 2

Every process has one thread, so that a rank stands for a device. The systems take turns, in
processes of their own, so that a noisy neighbour hits all of them; the load of the machine is
told with the figures. That all did the same work is checked by the gradient's norm.

    local  a LocalWorker, without a process group
    one    a RankWorker alone: FSDP2's hooks, shards and collectives without anyone to talk to
    two    two of them over gloo on the loopback interface, as configured by default on CPUs:
           weights are gathered and gradients exchanged once an optimizer step
    often  the same as by default on GPUs (``reshard_after_forward=true``, ``gradient_sync=
           micro_batch``): gathered twice and exchanged once a micro-batch, at less memory
    trl    with ``--peer-python``: two processes of TRL's GRPOTrainer. accelerate 1.15 has FSDP on
           accelerators only, so that on processors each holds a whole copy (DDP)

Printed are ``overhead`` (seconds of *one* over *local*, less 1; at most 10 % is wanted) and
``speed-up`` (*one* over *two*; at least 1.7 is wanted), and the peak of memory of a rank. Ratios
are medians over the rounds: a processor's speed drifts over minutes, which a round is too short
for.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train_step_child import SHAPES, Job, Meter, Shape, make_rows, save_model, to_batch

SYSTEMS = {"local": 1, "one": 1, "two": 2, "often": 2}
PEER = "trl"
TIMEOUT_S = 600.0


# --- one process of a system ---------------------------------------------------------------


def child(system: str, folder: str, shape_name: str, updates: int) -> None:
    """Measure; the first rank prints the result as JSON."""
    import torch

    torch.set_num_threads(1)
    meter = Meter("cpu")
    meter.no_model_yet()
    if system == "local":
        print(json.dumps(measure(None, meter, folder, shape_name, updates, system)))
        return
    from agent_r1.distributed.ranks import joined

    with joined("cpu", TIMEOUT_S) as ranks:
        found = ranks.collect(measure(ranks, meter, folder, shape_name, updates, system))
        if ranks.rank == 0:
            print(json.dumps(found[0] | {"peaks": [one["peak_bytes"] for one in found]}))


def measure(
    ranks: Any, meter: Meter, folder: str, shape_name: str, updates: int, system: str
) -> dict[str, Any]:
    """Seconds of each update after the first."""
    shape = SHAPES[shape_name]
    batch = to_batch(make_rows(shape, "groups"))
    advantages = batch.reward[:, None] * batch.loss_mask
    worker = make_worker(ranks, folder, shape, system)
    norm = 0.0
    for update in range(updates + 1):
        meter.start()
        metrics = worker.update_policy(batch, None, advantages)
        meter.stop()
        if update == 0:
            norm = metrics["actor/grad_norm"]
            meter.warm()
    return meter.result(norm)


def make_worker(ranks: Any, folder: str, shape: Shape, system: str) -> Any:
    from agent_r1.config.policy import ActorConfig, OptimConfig
    from agent_r1.models.load import load_model
    from agent_r1.trainer.worker import LocalWorker

    model = load_model(folder, "float32", "cpu")
    config = ActorConfig(
        optim=OptimConfig(lr=1e-6, weight_decay=0.0),
        ppo_max_token_len_per_gpu=shape.micro_rows * shape.length,
    )
    if ranks is None:
        return LocalWorker(model, config, total_steps=100)
    from agent_r1.distributed.shard import shard_model
    from agent_r1.distributed.worker import RankWorker

    often = system == "often"
    shard_model(model, ranks.mesh(), reshard_after_forward=often, reduce_every_pass=often)
    return RankWorker(model, config, ranks=ranks, total_steps=100)


# --- comparing -----------------------------------------------------------------------------


def run(system: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """All processes of one system; what its first rank measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, "--child", system, folder, options.shape]
    command.append(str(options.updates))
    if system == PEER:
        job = Job(
            PEER, folder, options.shape, "groups", "float32", "cpu", 1, options.updates, False
        )
        child = Path(__file__).with_name("train_step_child.py")
        command = [options.peer_python, str(child), json.dumps(asdict(job))]
    count = SYSTEMS.get(system, 2)
    processes = []
    for rank in range(count):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{system} failed; its output is above")
    result: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return result


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of all systems."""
    shape = SHAPES[options.shape]
    tokens = sum(len(row.prompt) + len(row.completion) for row in make_rows(shape, "groups"))
    systems = [*SYSTEMS, PEER] if options.peer_python else list(SYSTEMS)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        save_model(shape, Path(folder))
        for _ in range(options.rounds):
            for system in systems:
                runs[system].append(run(system, folder, options))
    norms = [result["grad_norm"] for results in runs.values() for result in results]
    if max(norms) - min(norms) > 1e-3 * max(norms):
        raise SystemExit(f"the systems did different work: gradient norms {norms}")
    summary = {system: summarise(results, tokens) for system, results in runs.items()}

    def ratio(over: str, under: str, key: str = "seconds") -> float:
        """Median over the rounds, within which the two ran one soon after the other."""
        pairs = zip(runs[over], runs[under], strict=True)
        return statistics.median(timed(one, key) / timed(other, key) for one, other in pairs)

    ratios = {}
    if PEER in summary:
        for system, name in (("two", ""), ("often", "_often")):
            memory = summary[system]["peak_gib"] / summary[PEER]["peak_gib"]
            ratios |= {
                f"speed_over_trl{name}": ratio(PEER, system),
                f"cpu_over_trl{name}": ratio(PEER, system, "cpu_seconds"),
                f"memory_of_trl{name}": memory,
            }
    return {
        "shape": options.shape,
        "tokens": tokens,
        "load_before": before,
        "load_after": os.getloadavg()[0],
        **summary,
        **ratios,
        "overhead": ratio("one", "local") - 1,
        "speed_up": ratio("one", "two"),
        "speed_up_often": ratio("one", "often"),
        "cpu_speed_up": ratio("one", "two", "cpu_seconds"),
        "cpu_speed_up_often": ratio("one", "often", "cpu_seconds"),
        "cpu_overhead": ratio("one", "local", "cpu_seconds") - 1,
        "speed_ups": [timed(a) / timed(b) for a, b in zip(runs["one"], runs["two"], strict=True)],
    }


def timed(result: dict[str, Any], key: str = "seconds") -> float:
    """Of an update of one process, its first left out."""
    return statistics.median(result[key][1:])


def summarise(results: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    seconds = statistics.median(s for result in results for s in result["seconds"][1:])
    peaks = [max(result.get("peaks", [result["peak_bytes"]])) for result in results]
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(s for r in results for s in r["cpu_seconds"][1:]),
        "tokens_per_second": tokens / seconds,
        "peak_gib": statistics.median(peaks) / 2**30,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        system, folder, shape, updates = sys.argv[2:]
        child(system, folder, shape, int(updates))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3, help="timed updates of each process")
    parser.add_argument("--peer-python", help="interpreter of an environment with TRL")
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    options = parser.parse_args()
    found = compare(options)
    for system in [name for name in (*SYSTEMS, PEER) if name in found]:
        one = found[system]
        print(
            f"{system:<6} {one['seconds']:7.2f} s  {one['cpu_seconds']:7.2f} CPU s a rank  "
            f"{one['tokens_per_second']:7.0f} tokens/s  {one['peak_gib']:6.2f} GiB a rank"
        )
    print(f"overhead of the sharded path {found['overhead']:+.1%}")
    print(f"the same in CPU seconds {found['cpu_overhead']:+.1%}")
    for name, key in (("as on CPUs", ""), ("as on GPUs", "_often")):
        seconds, cpu = found[f"speed_up{key}"], found[f"cpu_speed_up{key}"]
        print(f"two ranks, {name}, against one {seconds:.2f}x, in CPU seconds {cpu:.2f}x")
        if PEER in found:
            seconds, cpu = found[f"speed_over_trl{key}"], found[f"cpu_over_trl{key}"]
            memory = found[f"memory_of_trl{key}"]
            print(
                f"two ranks, {name}, against TRL {seconds:.2f}x, in CPU seconds {cpu:.2f}x, "
                f"{memory:.2f}x its memory"
            )
    each = ", ".join(f"{value:.2f}" for value in found["speed_ups"])
    print(f"two ranks against one, round by round: {each}")
    print(f"load of the machine {found['load_before']:.1f} before, {found['load_after']:.1f} after")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
