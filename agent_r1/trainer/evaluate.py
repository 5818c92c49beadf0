"""How good a policy is on held-out tasks: means, pass@k and majority votes, with intervals."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from agent_r1.rollout.agent_loop import Sampling
from agent_r1.rollout.group import Group, GroupRunner, usable
from agent_r1.types import Task, Trajectory


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate that at least one of ``k`` samples is right, from ``n`` samples.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained
    on Code", equation 1). Needs ``k <= n``.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@k needs 1 <= k <= n and 0 <= correct <= n, not {k=} {n=} {correct=}"
        )
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer, ties to the one given first; ``None`` when there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer]) if counts else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks with its bootstrap confidence interval."""

    value: float
    low: float
    high: float
    tasks: int


def bootstrap(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap of the mean over tasks (Efron 1979).

    Tasks are resampled, not single samples: the samples of one task are not independent.
    """
    if not values:
        raise ValueError("cannot estimate from no values")
    draw = random.Random(seed)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - confidence) / 2
    low = means[int(tail * (resamples - 1))]
    high = means[math.ceil((1 - tail) * (resamples - 1))]
    return Estimate(fmean(values), low, high, len(values))


class Validator:
    """Samples every held-out task ``n`` times, always with the same draws.

    The draws depend on seed, task and sample only, so that two validations differ by the
    policy alone.
    """

    def __init__(
        self, tasks: Sequence[Task], groups: GroupRunner, sampling: Sampling, *, n: int = 1
    ) -> None:
        self.tasks = tuple(tasks)
        self._groups = groups
        self._sampling = replace(sampling, seed=sampling.seed + 1)
        self._n = n

    @property
    def size(self) -> int:
        """Trajectories of one validation."""
        return len(self.tasks) * self._n

    async def run(
        self, on_finished: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]:
        groups = [Group(task, f"val.{i}:{task.id}", self._n) for i, task in enumerate(self.tasks)]
        return await self._groups.run(groups, self._sampling, on_finished)


def validation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``val-core/<source>/<what>/mean@n`` for the reward and each of its parts.

    Failed and unscored trajectories say nothing about the policy: they are left out, and
    ``val-aux/failed`` tells how many they are.
    """
    if not trajectories:
        return {}
    everything, trajectories = trajectories, usable(trajectories)
    metrics: dict[str, float] = {}
    by_source: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_source[trajectory.task.data_source].append(trajectory)
    for source, members in by_source.items():
        n = max(t.index for t in members) + 1
        for part, value in _part_means(members).items():
            metrics[f"val-core/{source}/{part}/mean@{n}"] = value
    metrics["val-aux/failed"] = 1 - len(trajectories) / len(everything)
    if not trajectories:
        return metrics
    metrics["val-aux/tool_call_share"] = fmean(bool(t.tool_calls) for t in trajectories)
    metrics["val-aux/num_turns/mean"] = fmean(len(t.turns) for t in trajectories)
    metrics["val-aux/response_length/mean"] = fmean(t.response_length for t in trajectories)
    return metrics


def _part_means(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    names = {"reward"} | {name for t in trajectories if t.reward for name in t.reward.parts}
    return {
        name: fmean(score(trajectory, name) for trajectory in trajectories)
        for name in sorted(names)
    }


def score(trajectory: Trajectory, part: str = "reward") -> float:
    """The reward of a scored trajectory, or one of its parts (0 where it has no such part)."""
    assert trajectory.reward is not None
    if part == "reward":
        return trajectory.reward.value
    return trajectory.reward.parts.get(part, 0.0)
