"""Training beside sampling: wall time a step with ``max_staleness`` 2 against 0.

    VLLM_PYTHON=…/bin/python python benchmarks/async_training.py MODEL [steps] [seeds] [epochs]

MODEL is a model folder that answers the quick start's tasks now and then: ``cold-start/policy``
of ``agent-r1 quickstart``. vLLM has processor 0, the trainer and the tools have processor 1, in
both modes. Every seed is trained in both, one after the other, for as many steps of 256
trajectories, by the settings of the quick start and ``epochs`` passes over each step's batch
(default 4, with which generation and training take about as long each). One line of JSON a run:
median seconds of a step (the first two left out), of which waiting for trajectories and updating,
mean reward of the last five steps. The last line has the ratio of seconds and whether the bar of
1.6 holds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from agent_r1.recipes.quickstart import RL_SETTINGS

STALENESS, BAR, WARM = 2, 1.6, 2


def main() -> None:
    model = Path(sys.argv[1])
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    epochs = int(sys.argv[4]) if len(sys.argv) > 4 else 4
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(seeds):
            for staleness in (0, STALENESS) if seed % 2 else (STALENESS, 0):
                folder = Path(scratch) / f"{seed}-{staleness}"
                rows.append(run(model, folder, steps, seed, staleness, epochs))
                print(json.dumps(rows[-1]), flush=True)
    seconds = {k: statistics.median(values(rows, k, "step_s")) for k in (0, STALENESS)}
    reward = {k: statistics.mean(values(rows, k, "reward")) for k in (0, STALENESS)}
    ratio = seconds[0] / seconds[STALENESS]
    summary = {"step_s": seconds, "reward": reward, "ratio": round(ratio, 2)}
    print(json.dumps(summary | {"bar_holds": ratio >= BAR}))
    sys.exit(0 if ratio >= BAR else 1)


def values(rows, staleness: int, key: str):
    return [row[key] for row in rows if row["max_staleness"] == staleness]


def run(model: Path, folder: Path, steps: int, seed: int, staleness: int, epochs: int):
    folder.mkdir()
    python = os.environ.get("VLLM_PYTHON", sys.executable)
    pinned = folder / "python"
    pinned.write_text(f'#!/bin/sh\nexec taskset -c 0 "{python}" "$@"\n')
    pinned.chmod(0o755)
    settings = [
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.vllm.python={pinned}",
        "actor_rollout_ref.rollout.vllm.args=[--block-size,'32']",
        "actor_rollout_ref.rollout.vllm.env={VLLM_CPU_OMP_THREADS_BIND: '0', OMP_NUM_THREADS: '1'}",
        "data.val_files=[]",
        "trainer.test_freq=-1",
        f"actor_rollout_ref.actor.ppo_epochs={epochs}",
        f"trainer.total_training_steps={steps}",
        f"trainer.max_staleness={staleness}",
        f"trainer.seed={seed}",
        "trainer.num_threads=1",
        "trainer.logger=[]",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder / 'run'}",
    ]
    command = ["taskset", "-c", "1", sys.executable, "-m", "agent_r1", "train"]
    command += ["--config", str(RL_SETTINGS), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    text = (folder / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    warm = lines[WARM:]
    return {
        "seed": seed,
        "max_staleness": staleness,
        "step_s": round(statistics.median(one["perf/time_per_step"] for one in warm), 2),
        "waiting_s": round(statistics.median(one["timing_s/gen"] for one in warm), 2),
        "updating_s": round(statistics.median(one["timing_s/update_actor"] for one in warm), 2),
        "reward": round(statistics.mean(one["critic/rewards/mean"] for one in lines[-5:]), 3),
    }


if __name__ == "__main__":
    main()
