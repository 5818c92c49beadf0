"""Siblings and batches: many trajectories at once, each at its own pace.

Nothing here waits for a slowest member but the end of the step itself, and nothing that
finished is lost when the step does not: every trajectory is handed to ``on_finished``
the moment it is scored.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent_r1.errors import RolloutFailed
from agent_r1.rollout.agent_loop import AgentLoop, Sampling
from agent_r1.rollout.engine import Engine
from agent_r1.types import Task, Trajectory

Scorer = Callable[[Trajectory], Awaitable[Trajectory]]
"""Returns the trajectory with its reward, or with ``error`` set when scoring failed."""


@dataclass(frozen=True, slots=True)
class Group:
    """One task and which trajectories to sample for it: ``n``, counted from ``first_index``."""

    task: Task
    group_id: str
    n: int = 1
    first_index: int = 0


class GroupRunner:
    """Samples and scores groups of trajectories.

    ``max_concurrency`` bounds how many trajectories are under way (``None``: all).
    Engines queue by themselves, so it matters for environments that hold resources. With
    a bound, which trajectory follows which depends on timing, and with it the last bits
    of the numbers.
    """

    def __init__(
        self,
        loop: AgentLoop,
        engine: Engine,
        scorer: Scorer,
        *,
        max_concurrency: int | None = None,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._scorer = scorer
        self._max_concurrency = max_concurrency

    async def run(
        self,
        groups: Sequence[Group],
        sampling: Sampling,
        on_finished: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """All trajectories of ``groups``, siblings together, in the order asked for."""
        members = [
            _Member(group, group.first_index + i) for group in groups for i in range(group.n)
        ]
        width = min(self._max_concurrency or len(members), len(members))
        waiting = iter(members[width:])
        self._engine.open([member.id for member in members[:width]])
        try:
            async with asyncio.TaskGroup() as tasks:

                async def score(member: _Member, trajectory: Trajectory) -> None:
                    if not trajectory.outcome.failed:
                        trajectory = await self._scorer(trajectory)
                    member.result = trajectory
                    if on_finished is not None:
                        on_finished(trajectory)

                async def lane(member: _Member | None) -> None:
                    while member is not None:
                        trajectory = await self._loop.run(
                            member.group.task, member.group.group_id, member.index, sampling
                        )
                        following = next(waiting, None)
                        if following is not None:
                            self._engine.open([following.id])
                        self._engine.release(member.id)
                        tasks.create_task(score(member, trajectory))
                        member = following

                for member in members[:width]:
                    tasks.create_task(lane(member))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        finally:
            for member in members:
                self._engine.release(member.id)
        return [member.result for member in members if member.result is not None]


@dataclass(slots=True)
class _Member:
    group: Group
    index: int
    result: Trajectory | None = None

    @property
    def id(self) -> str:
        return f"{self.group.group_id}/{self.index}"


def usable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those that training and baselines may count: not failed, and scored."""
    return [t for t in trajectories if not t.outcome.failed and t.reward is not None]


def require_usable(trajectories: Sequence[Trajectory], max_failed_share: float) -> list[Trajectory]:
    """The usable trajectories, or :class:`RolloutFailed` when too many are not.

    A few failures are the weather; a persistent share means that a tool, the sandbox, the
    engine or the reward is broken, and training on what is left would mislead.
    """
    good = usable(trajectories)
    failed = len(trajectories) - len(good)
    if trajectories and (not good or failed / len(trajectories) > max_failed_share):
        bad = [t for t in trajectories if t.outcome.failed or t.reward is None]
        reasons = Counter(f"[{t.outcome}] {t.error}" for t in bad)
        listed = "\n".join(f"  {n} x {reason}" for reason, n in reasons.most_common(3))
        raise RolloutFailed(
            f"{failed} of {len(trajectories)} trajectories failed (allowed: "
            f"{max_failed_share:.0%}, actor_rollout_ref.rollout.max_failed_share):\n{listed}"
        )
    return good
