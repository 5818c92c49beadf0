"""Table of a finished recipe: ``python report.py runs/hotpotqa-smollm2``."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from statistics import fmean

from agent_r1.monitor.records import load_trajectories
from agent_r1.types import Trajectory

STAGES = (("base", "base model"), ("cold-start", "cold start"), ("rl", "after RL"))


def main(folder: Path) -> None:
    stages = {name: read(folder / f"eval-{name}" / "trajectories.jsonl") for name, _ in STAGES}
    print("| | exact match | F1 (95 % interval) | searches | answer retrieved | tokens written |")
    print("|---|---|---|---|---|---|")
    for name, title in STAGES:
        print(f"| {title} | {' | '.join(cells(list(stages[name].values())))} |")
    before, after = stages["cold-start"], stages["rl"]
    gains = [f1(after[task]) - f1(before[task]) for task in before if task in after]
    low, high = interval(gains)
    print(f"\nF1 after RL against the cold start: {fmean(gains):+.3f} [{low:+.3f}, {high:+.3f}],")
    print(f"paired over {len(gains)} questions.")


def read(file: Path) -> dict[str, Trajectory]:
    return {t.task.id: t for t in load_trajectories(file) if t.reward is not None}


def cells(trajectories: list[Trajectory]) -> list[str]:
    scores = [f1(t) for t in trajectories]
    low, high = interval(scores)
    return [
        f"{fmean(t.reward.parts['em'] for t in trajectories):.1%}",
        f"{fmean(scores):.3f} [{low:.3f}, {high:.3f}]",
        f"{fmean(len(t.tool_calls) for t in trajectories):.2f}",
        f"{fmean(t.reward.parts['retrieved'] for t in trajectories):.1%}",
        f"{fmean(t.response_length for t in trajectories):.0f}",
    ]


def f1(trajectory: Trajectory) -> float:
    return trajectory.reward.parts["f1"]


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """Bootstrap over questions."""
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
