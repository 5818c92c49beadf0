"""Training with its trajectories and token records kept, and without: what does the store cost?

    python benchmarks/store_overhead.py MODEL [pairs] [--out FILE]

MODEL is a model folder that answers the quick start's tasks now and then: ``cold-start/policy`` of
``agent-r1 quickstart``. One run trains by the quick start's settings, which is the hardest case:
its network is so small that a step of 256 trajectories takes a second or two. Its steps come in
pairs, the one with the store on and the other with it off, and which of them is first takes turns;
so both meet the same policy and the same neighbours. Printed are the medians of the seconds and the
processor seconds of a step, the median of the pairs' ratios of each with the standard error of that
median, and the seconds that a step spent within the store itself.
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

WARM = 8
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
    parser.add_argument("pairs", type=int, nargs="?", default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    switch = Switch()
    RunFolder._append = lambda run, file, records: switch(run, file, records)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        report = measure(switch, options.model, Path(folder) / "run", options.pairs)
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(switch: Switch, model: Path, folder: Path, pairs: int) -> dict[str, Any]:
    settings = {
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.actor.optim.lr": 1e-5,  # the lengths of answers stay what they are
        "data.val_files": [],
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.logger": [],
        "trainer.total_training_steps": WARM + 2 * pairs,
        "trainer.default_local_dir": str(folder),
    }
    wall: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    with Trainer(RL_SETTINGS, settings) as run:
        run.fit(WARM)
        switch.seconds = 0.0
        for pair in range(pairs):
            for switch.on in (True, False) if pair % 2 else (False, True):
                began, used = time.perf_counter(), processor_seconds()
                run.fit(1)
                wall[switch.on].append(time.perf_counter() - began)
                cpu[switch.on].append(processor_seconds() - used)
    within = switch.seconds / pairs
    off = statistics.median(wall[False])
    return {
        "step_s": {"on": statistics.median(wall[True]), "off": off},
        "processor_s": {"on": statistics.median(cpu[True]), "off": statistics.median(cpu[False])},
        "ratio": compared(wall),
        "processor_ratio": compared(cpu),
        "store_s": within,
        "store_share": within / off,
        "load": os.getloadavg()[0],
        "bar_holds": within / off <= BAR,
    }


def compared(taken: dict[bool, list[float]]) -> dict[str, float]:
    """On against off: the median over the pairs, and its standard error.

    The error is that of a normal distribution with the same quartiles: single steps that another
    process disturbed do not widen it.
    """
    ratios = [on / off for on, off in zip(taken[True], taken[False], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "standard_error": 1.2533 * (high - low) / 1.349 / len(ratios) ** 0.5}


def processor_seconds() -> float:
    """Of this process; the programs of the tool run in others, and as many of them."""
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
