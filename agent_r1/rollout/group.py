"""Groups and batches: many trajectories at once, each at its own pace.

The trajectories of one task are a group; they are each other's *siblings*. Only a caller that asks
for all of them waits for the slowest, and nothing that finished is lost when a step fails: every
trajectory is handed to ``on_finished`` the
moment it is scored.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from agent_r1.errors import RolloutFailed
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.limits import Sampling
from agent_r1.rollout.stream import Watcher
from agent_r1.tracing import span
from agent_r1.types import Task, Trajectory

Scorer = Callable[..., Awaitable[Trajectory]]
"""Of a trajectory; returns it with its reward, or with ``error`` set when scoring failed.

Where rewards compare siblings (``compares``), a second argument is the sequence of those that
are scored with it, itself among them.
"""

OnFinished = Callable[[Trajectory], None]


class Loop(Protocol):
    """Samples one trajectory: an environment's loop, or an agent that owns its own."""

    async def run(
        self,
        task: Task,
        group_id: str,
        index: int,
        sampling: Sampling,
        watch: Watcher | None = None,
    ) -> Trajectory:
        """The trajectory, whatever became of it."""

    async def close(self) -> None:
        """Release what is held between trajectories."""


@dataclass(frozen=True, slots=True)
class Group:
    """One task and which trajectories to sample for it: ``n``, counted from ``first_index``."""

    task: Task
    group_id: str
    n: int = 1
    first_index: int = 0


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    """A group and its trajectories in the order of their indices."""

    group: Group
    trajectories: tuple[Trajectory, ...]


class GroupRunner:
    """Samples and scores groups of trajectories.

    ``max_concurrency`` bounds how many trajectories are under way (``None``: all).
    Engines queue by themselves, so it matters for environments that hold resources. With
    a bound, which trajectory follows which depends on timing, and with it the last bits
    of the numbers. With ``compares``, siblings are scored together, once all are sampled.
    """

    def __init__(
        self,
        loop: Loop,
        engine: Engine,
        scorer: Scorer,
        *,
        max_concurrency: int | None = None,
        compares: bool = False,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._scorer = scorer
        self._max_concurrency = max_concurrency
        self._compares = compares

    async def _sampled(self, member: _Member, sampling: Sampling) -> Trajectory:
        group, index = member.group, member.index
        with span("trajectory", id=f"{group.group_id}/{index}", task=group.task.id):
            return await self._loop.run(group.task, group.group_id, index, sampling)

    def rollouts(
        self,
        sampling: Sampling,
        on_finished: OnFinished | None = None,
        *,
        enough: int | None = None,
    ) -> Rollouts:
        """Groups to be submitted one after another; see :class:`Rollouts`."""
        return self._rollouts(sampling, on_finished, enough, self._compares)

    def _rollouts(
        self,
        sampling: Sampling,
        on_finished: OnFinished | None,
        enough: int | None,
        compares: bool,
    ) -> Rollouts:
        return Rollouts(
            lambda member: self._sampled(member, sampling),
            self._engine,
            self._scorer,
            on_finished,
            lanes=self._max_concurrency,
            enough=enough,
            compares=compares,
        )

    async def close(self) -> None:
        """Release what the loop holds. The engine stays the caller's to close."""
        await self._loop.close()

    async def run(
        self,
        groups: Sequence[Group],
        sampling: Sampling,
        on_finished: OnFinished | None = None,
    ) -> list[Trajectory]:
        """All trajectories of ``groups``, siblings together, in the order asked for.

        Each is scored alone: what compares siblings says how they differ, and not how good the
        policy is.
        """
        done: dict[str, FinishedGroup] = {}
        async with self._rollouts(sampling, on_finished, None, False) as rollouts:
            rollouts.submit(groups)
            for _ in groups:
                finished = await rollouts.next()
                done[_key(finished.group)] = finished
        return [t for group in groups for t in done[_key(group)].trajectories]


@dataclass(slots=True, eq=False)
class _Member:
    group: Group
    index: int
    siblings: list[_Member] = field(repr=False)
    task: asyncio.Task[None] | None = None
    sampled: Trajectory | None = None
    result: Trajectory | None = None
    cut: bool = False

    @property
    def id(self) -> str:
        return f"{self.group.group_id}/{self.index}"


class Rollouts:
    """Groups under way, and those that finished. An asynchronous context manager.

    Groups submitted together are announced to the engine together. A group is finished when
    all of its members are, or ``enough`` of them: the others are then cut off. Leaving the
    context cancels what is under way. At most ``lanes`` trajectories run at once.
    """

    def __init__(
        self,
        run: Callable[[_Member], Coroutine[Any, Any, Trajectory]],
        engine: Engine,
        scorer: Scorer,
        on_finished: OnFinished | None,
        *,
        lanes: int | None,
        enough: int | None,
        compares: bool = False,
    ) -> None:
        self._run = run
        self._engine = engine
        self._scorer = scorer
        self._on_finished = on_finished
        self._lanes = lanes
        self._enough = enough
        self._compares = compares
        self._open: dict[str, list[_Member]] = {}
        self._waiting: deque[_Member] = deque()
        self._running: dict[str, _Member] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished: deque[FinishedGroup] = deque()
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def running(self) -> int:
        """Trajectories under way now."""
        return len(self._running)

    def submit(self, groups: Sequence[Group]) -> None:
        """Begin these groups as soon as lanes are free."""
        for group in groups:
            members: list[_Member] = []
            indices = range(group.first_index, group.first_index + group.n)
            members += [_Member(group, index, members) for index in indices]
            self._open[_key(group)] = members
            self._waiting.extend(members)
            if not members:
                self._close_group(members, group)
        self._start_waiting()

    async def next(self) -> FinishedGroup:
        """The next group that is finished; waits for it, however long."""
        while not self._finished:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._finished.popleft()

    def cut(self, group: Group) -> None:
        """Stop a group and forget what it has sampled."""
        for member in self._open.pop(_key(group), ()):
            self._cut(member)
        self._start_waiting()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in self._running.values():
            self._engine.release(member.id)
        self._running.clear()

    def _start_waiting(self, leaving: int = 0) -> None:
        """Fill the lanes, among them those of ``leaving`` members that are about to go."""
        free = len(self._waiting)
        if self._lanes is not None:
            free = min(free, self._lanes - len(self._running) + leaving)
        members = [self._waiting.popleft() for _ in range(free)]
        if not members:
            return
        self._engine.open([member.id for member in members])
        for member in members:
            self._running[member.id] = member
            member.task = self._spawn(self._sample(member))

    async def _sample(self, member: _Member) -> None:
        trajectory = await self._run(member)
        if member.cut:
            return
        self._start_waiting(leaving=1)
        self._leave(member)
        score = self._score_together if self._compares else self._score
        self._spawn(score(member, trajectory))

    def _leave(self, member: _Member) -> None:
        if self._running.pop(member.id, None) is not None:
            self._engine.release(member.id)

    async def _score(self, member: _Member, trajectory: Trajectory) -> None:
        if not trajectory.outcome.failed:
            trajectory = await self._scorer(trajectory)
        if member.cut:
            return
        self._finish(member, trajectory)
        done = [m for m in member.siblings if m.result is not None]
        usable_ones = [m for m in done if m.result is not None and not m.result.outcome.failed]
        if len(done) == len(member.siblings) or len(usable_ones) == self._enough:
            self._close_group(member.siblings, member.group)

    async def _score_together(self, member: _Member, trajectory: Trajectory) -> None:
        """Score the siblings that are sampled, if this one is the last that is waited for."""
        if member.cut:
            return
        member.sampled = trajectory
        group = member.siblings
        there = [(m, m.sampled) for m in group if m.sampled is not None]
        good = [sampled for _, sampled in there if not sampled.outcome.failed]
        if len(there) < len(group) and len(good) != self._enough:
            return
        for late in group:
            if late.sampled is None:
                self._cut(late)
        self._start_waiting()
        scored = dict(
            zip(
                [t.id for t in good],
                await asyncio.gather(*(self._scorer(t, good) for t in good)),
                strict=True,
            )
        )
        if member.cut:
            return
        for sibling, sampled in there:
            self._finish(sibling, scored.get(sampled.id, sampled))
        self._close_group(group, member.group)

    def _finish(self, member: _Member, trajectory: Trajectory) -> None:
        member.result = trajectory
        if self._on_finished is not None:
            self._on_finished(trajectory)

    def _close_group(self, members: Sequence[_Member], group: Group) -> None:
        for member in members:
            if member.result is None:
                self._cut(member)
        self._open.pop(_key(group), None)
        results = tuple(m.result for m in members if m.result is not None)
        self._finished.append(FinishedGroup(group, results))
        self._changed.set()
        self._start_waiting()

    def _cut(self, member: _Member) -> None:
        member.cut = True
        if member in self._waiting:
            self._waiting.remove(member)
        if member.task is not None and member.id in self._running:
            member.task.cancel()
            self._leave(member)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._changed.set()


def _key(group: Group) -> str:
    return f"{group.group_id}/{group.first_index}"


def usable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those that training and baselines may count: not failed, and scored."""
    return [t for t in trajectories if not t.outcome.failed and t.reward is not None]


def require_usable(trajectories: Sequence[Trajectory], max_failed_share: float) -> list[Trajectory]:
    """The usable trajectories, or :class:`RolloutFailed` when too many are not.

    A few failures are to be expected; a persistent share means that a tool, the sandbox, the
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
