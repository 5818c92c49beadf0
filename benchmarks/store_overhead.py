"""Training with its trajectories and token records kept, and without: what does the store cost?

    python benchmarks/store_overhead.py MODEL [blocks] [--out FILE]

MODEL is a model folder that answers the quick start's tasks now and then: ``cold-start/policy`` of
``agent-r1 quickstart``. One run trains by the quick start's settings, which is the hardest case:
its network is so small that a step of 256 trajectories takes a second or two. Blocks of four
steps take turns with the store on and off, so that both meet the same policy and the same
neighbours. Printed are the medians over the blocks of the seconds and the processor seconds of a
step, the ratio of each, and the seconds that a step spent within the store itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from agent_r1 import Trainer
from agent_r1.monitor.run import RunFolder
from agent_r1.recipes.quickstart import RL_SETTINGS

STEPS, WARM = 4, 8
BAR = 0.01


class Switch:
    """The store of every run in this process: on or off, and what it takes."""

    def __init__(self) -> None:
        self.on = True
        self.seconds = 0.0
        self._append = RunFolder._append

    def __call__(self, run: RunFolder, file: Any, records: Any) -> None:
        if self.on:
            began = time.perf_counter()
            self._append(run, file, records)
            self.seconds += time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("blocks", type=int, nargs="?", default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    switch = Switch()
    RunFolder._append = lambda run, file, records: switch(run, file, records)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        report = measure(switch, options.model, Path(folder) / "run", options.blocks)
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(switch: Switch, model: Path, folder: Path, blocks: int) -> dict[str, Any]:
    settings = {
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.actor.optim.lr": 1e-5,  # the lengths of answers stay what they are
        "data.val_files": [],
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.logger": [],
        "trainer.total_training_steps": WARM + STEPS * blocks,
        "trainer.default_local_dir": str(folder),
    }
    wall: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    with Trainer(RL_SETTINGS, settings) as run:
        run.fit(WARM)
        switch.seconds = 0.0
        for block in range(blocks):
            switch.on = block % 2 == 0
            began, used = time.perf_counter(), processor_seconds()
            run.fit(STEPS)
            wall[switch.on].append((time.perf_counter() - began) / STEPS)
            cpu[switch.on].append((processor_seconds() - used) / STEPS)
    seconds = {on: statistics.median(values) for on, values in wall.items()}
    processor = {on: statistics.median(values) for on, values in cpu.items()}
    within = switch.seconds / (STEPS * len(wall[True]))
    return {
        "step_s": {"on": seconds[True], "off": seconds[False]},
        "processor_s": {"on": processor[True], "off": processor[False]},
        "ratio": seconds[True] / seconds[False],
        "processor_ratio": processor[True] / processor[False],
        "store_s": within,
        "store_share": within / seconds[False],
        "load": os.getloadavg()[0],
        "bar_holds": seconds[True] / seconds[False] <= 1 + BAR,
    }


def processor_seconds() -> float:
    """Of this process; the programs of the tool run in others, and as many of them."""
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
