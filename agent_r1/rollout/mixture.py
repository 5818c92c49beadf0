"""Several environments in one run: every task is sampled and scored by its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from agent_r1.errors import AgentR1Error
from agent_r1.rollout.group import Loop, Scorer
from agent_r1.rollout.limits import Sampling
from agent_r1.rollout.stream import Watcher
from agent_r1.types import Task, Trajectory

T = TypeVar("T")


class WithStops:
    """A loop whose turns also end at the stop strings of its environment."""

    def __init__(self, loop: Loop, stop: tuple[str, ...]) -> None:
        self._loop = loop
        self._stop = stop

    async def run(
        self,
        task: Task,
        group_id: str,
        index: int,
        sampling: Sampling,
        watch: Watcher | None = None,
    ) -> Trajectory:
        stop = tuple(dict.fromkeys((*self._stop, *sampling.stop)))
        return await self._loop.run(task, group_id, index, replace(sampling, stop=stop), watch)

    async def close(self) -> None:
        await self._loop.close()


class Mixture:
    """Hands each task to the loop of the environment that it names (``Task.env``)."""

    def __init__(self, loops: Mapping[str, Loop]) -> None:
        self._loops = dict(loops)

    async def run(
        self,
        task: Task,
        group_id: str,
        index: int,
        sampling: Sampling,
        watch: Watcher | None = None,
    ) -> Trajectory:
        loop = of_task(self._loops, task)
        return await loop.run(task, group_id, index, sampling, watch)

    async def close(self) -> None:
        for loop in self._loops.values():
            await loop.close()


def mixed_scorer(scorers: Mapping[str, Scorer]) -> Scorer:
    """Scores each trajectory by the reward of its task's environment."""

    async def scorer(trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Trajectory:
        return await of_task(scorers, trajectory.task)(trajectory, siblings)

    return scorer


def of_task(parts: Mapping[str, T], task: Task) -> T:
    """The part of the task's environment.

    Raises:
        AgentR1Error: the run has no such environment; loading tasks finds that out before.
    """
    try:
        return parts[task.env]
    except KeyError:
        raise AgentR1Error(
            f"the task {task.id} is one of the environment {task.env!r}, and this run has "
            f"{', '.join(parts)}; add it to envs"
        ) from None
