"""A weighted sum of rewards that are run in different ways, each as what it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.reward.base import REWARDS, make_reward, wants_siblings
from agent_r1.reward.builtin import ingredients, summed
from agent_r1.reward.grader import Grader
from agent_r1.types import Reward, Trajectory


class SumGrader(Grader):
    """``weighted_sum`` with ``async`` rewards among its own, such as a judge.

    Each reward has a :class:`Grader`: those that wait are awaited, many at once, those that
    compute have their processes, and those that compare siblings get them. All run at the same
    time, each within ``timeout_s``.
    """

    def __init__(self, rewards: Mapping[str, Any], timeout_s: float) -> None:
        super().__init__("weighted_sum", timeout_s=timeout_s, options={"rewards": rewards})
        self._graders = {
            name: (weight, make_grader(name, timeout_s=timeout_s, options=options))
            for name, (weight, options) in ingredients(rewards).items()
        }
        self.wants_siblings = any(grader.wants_siblings for _, grader in self._graders.values())

    def score(self, trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Reward:
        return asyncio.run(self.ascore(trajectory, siblings))

    async def ascore(self, trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Reward:
        graders = self._graders.values()
        found = await asyncio.gather(*(each.ascore(trajectory, siblings) for _, each in graders))
        weights = [weight for weight, _ in graders]
        return summed(zip(self._graders, weights, found, strict=True))

    def close(self) -> None:
        for _, grader in self._graders.values():
            grader.close()
        super().close()


def make_grader(name: str, *, timeout_s: float, options: dict[str, Any]) -> Grader:
    """The grader of a configured reward."""
    rewards = options.get("rewards")
    if name == "weighted_sum" and isinstance(rewards, Mapping) and _is_mixed(rewards):
        return SumGrader(rewards, timeout_s)
    return Grader(name, timeout_s=timeout_s, options=options)


def _is_mixed(rewards: Mapping[str, Any]) -> bool:
    """Whether one of these rewards is more than a function to call in a process."""
    for name, (_, options) in ingredients(rewards).items():
        inner = options.get("rewards")
        if name == "weighted_sum" and isinstance(inner, Mapping) and _is_mixed(inner):
            return True
        if inspect.iscoroutinefunction(REWARDS.get(name)):
            return True
        if wants_siblings(make_reward(name, **options)):
            return True
    return False
