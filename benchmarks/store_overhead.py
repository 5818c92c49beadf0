"""Training with its trajectories and token records kept, and without: what does the store cost?

    python benchmarks/store_overhead.py MODEL [pairs] [--out FILE]

MODEL is a model folder that answers the quick start's tasks now and then: ``cold-start/policy`` of
``agent-r1 quickstart``, whose settings are used. They are the hardest case: a step of 256
trajectories takes a second or two. Two runs of the same seed take steps in turn, the one with the
store on and the other with it off, so that both sample the same trajectories and meet the same
neighbours; which has the store, and which is first, takes turns.

Printed are the medians of the seconds and the processor seconds of a step, the median of the pairs'
ratios of each with the standard error of that median, and the seconds that a step spent within the
store itself (also a median; some of them are waiting for memory that the update reads next, and
would be spent there without a store). The bar is on the share of the latter, because the ratio of
whole steps is not known to a percent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
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
        report = measure(switch, options.model, Path(folder), options.pairs)
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
        "trainer.total_training_steps": WARM + pairs,
    }
    places = [{"trainer.default_local_dir": str(folder / name)} for name in "ab"]
    wall: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    within = []
    with ExitStack() as stack:
        runs = [stack.enter_context(Trainer(RL_SETTINGS, settings | place)) for place in places]
        for run in runs:
            run.fit(WARM)
        for pair in range(pairs):
            rewards = []
            for number in (0, 1) if pair % 2 else (1, 0):
                switch.on = number == (pair // 2) % 2
                began, used, switch.seconds = time.perf_counter(), processor_seconds(), 0.0
                rewards.append(runs[number].fit(1)[-1].metrics["critic/rewards/mean"])
                wall[switch.on].append(time.perf_counter() - began)
                cpu[switch.on].append(processor_seconds() - used)
                if switch.on:
                    within.append(switch.seconds)
            if rewards[0] != rewards[1]:
                raise SystemExit(f"the runs did different work: mean rewards {rewards}")
    off = statistics.median(wall[False])
    share = statistics.median(within) / off
    return {
        "step_s": {"on": statistics.median(wall[True]), "off": off},
        "processor_s": {"on": statistics.median(cpu[True]), "off": statistics.median(cpu[False])},
        "ratio": compared(wall),
        "processor_ratio": compared(cpu),
        "store_s": statistics.median(within),
        "store_share": share,
        "load": os.getloadavg()[0],
        "bar_holds": share <= BAR,
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
