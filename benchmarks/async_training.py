"""Training beside sampling: wall time a step with ``max_staleness`` 2 against 0.

    VLLM_PYTHON=…/bin/python python benchmarks/async_training.py MODEL [KEY=VALUE …]
        [--steps 40] [--seeds 5] [--epochs 4] [--hidden 128 --layers 3]

MODEL is a model folder that answers the quick start's tasks now and then: ``cold-start/policy`` of
``agent-r1 quickstart``. Where there is none, one of ``--hidden`` and ``--layers`` is made, and
fine-tuned for 400 steps as the quick start does. vLLM has processor 0, the trainer and the tools
have processor 1, in both modes. Every seed is trained in both, one after the other, for as many
steps of 256 trajectories, by the settings of the quick start, ``--epochs`` passes over each step's
batch (with 4 generation and training take about as long each for the quick start's model, with 2
for one of ``--hidden 384 --layers 6``), and the settings KEY=VALUE.

One line of JSON a run: median seconds of a step (the first two left out), of which waiting for
trajectories and updating, mean reward of the last five steps. The last line has the ratio of
seconds and whether the bar of 1.6 holds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from agent_r1.recipes.quickstart import COLD_START_SETTINGS, RL_SETTINGS
from agent_r1.recipes.tiny import TinyShape, build_tiny_model

STALENESS, BAR, WARM = 2, 1.6, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    if not (options.model / "config.json").is_file():
        make(options.model, options.hidden, options.layers)
    options.settings.append(f"actor_rollout_ref.actor.ppo_epochs={options.epochs}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            for staleness in (0, STALENESS) if seed % 2 else (STALENESS, 0):
                folder = Path(scratch) / f"{seed}-{staleness}"
                rows.append(run(options, folder, seed, staleness))
                print(json.dumps(rows[-1]), flush=True)
    seconds = {k: statistics.median(values(rows, k, "step_s")) for k in (0, STALENESS)}
    reward = {k: statistics.mean(values(rows, k, "reward")) for k in (0, STALENESS)}
    ratio = seconds[0] / seconds[STALENESS]
    summary = {"step_s": seconds, "reward": reward, "ratio": round(ratio, 2)}
    print(json.dumps(summary | {"bar_holds": ratio >= BAR}))
    sys.exit(0 if ratio >= BAR else 1)


def make(folder: Path, hidden: int, layers: int) -> None:
    """The quick start's model of another size, after its cold start."""
    shape = TinyShape(hidden=hidden, layers=layers, heads=hidden // 32, feed_forward=3 * hidden)
    with tempfile.TemporaryDirectory() as scratch:
        raw, cold = Path(scratch) / "model", Path(scratch) / "cold-start"
        build_tiny_model(raw, 0, shape)
        settings = [f"model.path={raw}", f"trainer.default_local_dir={cold}", "trainer.logger=[]"]
        settings.append("trainer.total_training_steps=400")
        command = [sys.executable, "-m", "agent_r1", "sft", "--config", str(COLD_START_SETTINGS)]
        subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(cold / "policy", folder)


def values(rows, staleness: int, key: str):
    return [row[key] for row in rows if row["max_staleness"] == staleness]


def run(options: argparse.Namespace, folder: Path, seed: int, staleness: int):
    folder.mkdir()
    python = os.environ.get("VLLM_PYTHON", sys.executable)
    pinned = folder / "python"
    pinned.write_text(f'#!/bin/sh\nexec taskset -c 0 "{python}" "$@"\n')
    pinned.chmod(0o755)
    settings = [
        f"actor_rollout_ref.model.path={options.model}",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.vllm.python={pinned}",
        "actor_rollout_ref.rollout.vllm.args=[--block-size,'32']",
        "actor_rollout_ref.rollout.vllm.env={VLLM_CPU_OMP_THREADS_BIND: '0', OMP_NUM_THREADS: '1'}",
        "data.val_files=[]",
        "trainer.test_freq=-1",
        f"trainer.total_training_steps={options.steps}",
        f"trainer.max_staleness={staleness}",
        f"trainer.seed={seed}",
        "trainer.num_threads=1",
        "trainer.logger=[]",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder / 'run'}",
        *options.settings,
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
