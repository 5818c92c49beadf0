"""A weighted sum some of whose rewards wait for a server: each is run as what it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from agent_r1.reward.base import REWARDS
from agent_r1.reward.builtin import ingredients, summed
from agent_r1.reward.grader import Grader
from agent_r1.types import Reward, Trajectory


class SumGrader(Grader):
    """``weighted_sum`` with ``async`` rewards among its own, such as a judge.

    Each reward has a :class:`Grader`: those that wait are awaited, many at once, and those that
    compute have their processes. All run at the same time, each within ``timeout_s``.
    """

    def __init__(self, rewards: Mapping[str, Any], timeout_s: float) -> None:
        super().__init__("weighted_sum", timeout_s=timeout_s, options={"rewards": rewards})
        self._graders = {
            name: (weight, Grader(name, timeout_s=timeout_s, options=options))
            for name, (weight, options) in ingredients(rewards).items()
        }

    def score(self, trajectory: Trajectory) -> Reward:
        return asyncio.run(self.ascore(trajectory))

    async def ascore(self, trajectory: Trajectory) -> Reward:
        graders = self._graders.values()
        found = await asyncio.gather(*(grader.ascore(trajectory) for _, grader in graders))
        weights = [weight for weight, _ in graders]
        return summed(zip(self._graders, weights, found, strict=True))

    def close(self) -> None:
        for _, grader in self._graders.values():
            grader.close()
        super().close()


def make_grader(name: str, *, timeout_s: float, options: dict[str, Any]) -> Grader:
    """The grader of a configured reward."""
    rewards = options.get("rewards")
    if name == "weighted_sum" and isinstance(rewards, Mapping):
        entries = [REWARDS.get(each) for each in rewards]
        if any(inspect.iscoroutinefunction(entry) for entry in entries):
            return SumGrader(rewards, timeout_s)
    return Grader(name, timeout_s=timeout_s, options=options)
