"""How good the policy is on held-out tasks while it trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from agent_r1.monitor.metrics import source_of
from agent_r1.rollout.group import Group, GroupRunner, usable
from agent_r1.rollout.limits import Sampling
from agent_r1.types import Task, Trajectory


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

    def groups(self) -> list[Group]:
        """What :meth:`run` samples."""
        return [Group(task, f"val.{i}:{task.id}", self._n) for i, task in enumerate(self.tasks)]

    async def run(
        self,
        on_finished: Callable[[Trajectory], None] | None = None,
        groups: Sequence[Group] | None = None,
    ) -> list[Trajectory]:
        """Sample all of :meth:`groups`, or only these of them."""
        chosen = self.groups() if groups is None else groups
        return await self._groups.run(chosen, self._sampling, on_finished)


def validation_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``val-core/<source>/<what>/mean@n`` for the reward and each of its parts.

    In a run with several environments ``<source>`` is ``<environment>/<source>``.

    Failed and unscored trajectories say nothing about the policy: they are left out, and
    ``val-aux/failed`` tells how many they are.
    """
    if not trajectories:
        return {}
    everything, trajectories = trajectories, usable(trajectories)
    metrics: dict[str, float] = {}
    by_source: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_source[source_of(trajectory)].append(trajectory)
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
