"""Tasks in, the trajectories of a step out; sampling goes on while nobody waits for it.

The sampler begins as many groups as the queue allows, judges each one that finishes, and
hands the learner what the queue chooses. Everything that finished is stored with the step
that used it or gave it up.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from agent_r1.monitor.console import Progress
from agent_r1.monitor.metrics import succeeded
from agent_r1.monitor.run import RunFolder
from agent_r1.rollout.group import FinishedGroup, Group, OnFinished, Rollouts, require_usable
from agent_r1.rollout.group import usable as usable_of
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.curriculum import Curriculum
from agent_r1.trainer.queue import Finished, GroupQueue, Taken, Ticket
from agent_r1.trainer.supply import TaskSupply
from agent_r1.types import Task, Trajectory

OpenRollouts = Callable[[OnFinished], Rollouts]


@dataclass(frozen=True, slots=True)
class Sample:
    """The trajectories of one step."""

    everything: list[Trajectory]
    """All that were used or given up since the last step."""
    chosen: list[Trajectory]
    """Those to train on."""
    groups: list[Group]
    """The groups that were chosen."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """``size`` groups of ``n`` members are a step; ``enough`` members make a group."""

    size: int
    n: int
    enough: int
    max_failed_share: float


class Sampler:
    """Owns what is under way. Used on one event loop, between ``start`` and ``close``."""

    def __init__(
        self,
        settings: SamplerSettings,
        queue: GroupQueue,
        supply: TaskSupply,
        credit: CreditAssigner,
        run: RunFolder,
        curriculum: Curriculum | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._supply = supply
        self._credit = credit
        self._run = run
        self._curriculum = curriculum
        self._version = 0
        self._begun = 0
        """Groups begun in this step (repeatable) or in the whole run."""
        self._tickets: dict[str, Ticket] = {}
        self._unstored: list[Trajectory] = []
        self._window: list[Trajectory] = []
        """Trajectories of which not too many may have failed."""
        self._cut = 0
        self._report: Progress = lambda done: None

    def start(self, rollouts: OpenRollouts) -> None:
        """Accept groups as they finish, on the running event loop."""
        if not self._queue.repeatable:
            size, n = self._settings.size, self._settings.n
            self._report = self._run.progress("rollout", size * n)
        self._rollouts = rollouts(self._on_finished)
        self._changed = asyncio.Event()
        self._pump = asyncio.create_task(self._accept_all())

    def advance(self, version: int) -> None:
        """The engine serves this version from now on."""
        self._version = version
        if not self._queue.repeatable:
            self._fill()

    async def gather(self, step: int) -> Sample:
        """The trajectories that step ``step + 1`` trains on, improving version ``step``.

        Raises :class:`agent_r1.errors.RolloutFailed` when too many trajectories failed.
        """
        self._mark = self._supply.state_dict()
        try:
            self._fill()
            while (taken := self._take(step)) is None:
                self._changed.clear()
                self._fill()  # what was given up as too old has left its place to others
                await self._changed.wait()
        except BaseException:
            self.give_back([])
            raise
        return self._sample(taken, step)

    def give_back(self, groups: Sequence[Group]) -> None:
        """These groups were handed out and not trained on: their tasks are owed."""
        if self._queue.repeatable:
            self._supply.load_state_dict(self._mark)
        else:
            self._supply.again(group.task for group in groups)

    def _take(self, step: int) -> Taken | None:
        if self._pump.done():
            self._pump.result()
        return self._queue.take(step)

    def _sample(self, taken: Taken, step: int) -> Sample:
        late = self._queue.overdue(step)
        for ticket in late:
            self._rollouts.cut(ticket.group)
        self._cut += len(late)
        again = sorted([*taken.again, *late], key=lambda ticket: ticket.order)
        self._supply.again(ticket.group.task for ticket in again)
        metrics = self._metrics(taken, step)
        everything = self._store(step + 1)
        self._fill()
        return Sample(
            everything,
            [t for finished in taken.chosen for t in finished.usable],
            [finished.ticket.group for finished in taken.chosen],
            metrics,
        )

    async def close(self, step: int) -> None:
        """Stop what is under way; what had finished is stored for step ``step + 1``."""
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        await self._rollouts.__aexit__(None, None, None)
        self._store(step + 1, everything=True)

    def state_dict(self) -> dict[str, Any]:
        """Where to continue. Whatever is under way or waits is sampled again."""
        owed = [ticket.group.task for ticket in self._queue.owed()]
        curriculum = None if self._curriculum is None else self._curriculum.state_dict()
        begun = 0 if self._queue.repeatable else self._begun
        return {"supply": self._supply.state_dict(owed), "begun": begun, "curriculum": curriculum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._supply.load_state_dict(state["supply"])
        self._begun = int(state["begun"])
        if self._curriculum is not None and state["curriculum"] is not None:
            self._curriculum.load_state_dict(state["curriculum"])

    # --- groups under way -------------------------------------------------------------

    def _fill(self) -> None:
        count = self._queue.allowance(self._version)
        if not count:
            return
        groups = self._groups(self._supply.take(count))
        for group in groups:
            ticket = Ticket(group, self._begun, self._version)
            self._tickets[group.group_id] = ticket
            self._queue.begin(ticket)
            self._begun += 1
        if self._queue.repeatable:
            self._report = self._run.progress("rollout", sum(group.n for group in groups))
        self._rollouts.submit(groups)

    def _groups(self, tasks: Sequence[Task]) -> list[Group]:
        """Ids are ``step.attempt.place:task``; in a stream the step is the nominal one."""
        size, n = self._settings.size, self._settings.n
        found = []
        for number, task in enumerate(tasks, start=self._begun):
            wave, place = divmod(number, size)
            repeatable = self._queue.repeatable
            label = f"{self._version + 1}.{wave}" if repeatable else f"{wave + 1}.0"
            found.append(Group(task, f"{label}.{place}:{task.id}", n))
        return found

    async def _accept_all(self) -> None:
        try:
            while True:
                self._accept(await self._rollouts.next())
                self._fill()
                self._changed.set()
        finally:
            self._changed.set()

    def _accept(self, finished: FinishedGroup) -> None:
        everything = finished.trajectories
        good = usable_of(everything)
        informative = bool(self._credit.informative(good))
        ticket = self._tickets[finished.group.group_id]
        self._queue.finish(Finished(ticket, everything, tuple(good), informative))
        if self._curriculum is not None:
            self._curriculum.record(finished.group.task, [succeeded(t) for t in good])
        self._window += everything
        if len(self._window) >= self._settings.size * self._settings.enough:
            window, self._window = self._window, []
            require_usable(window, self._settings.max_failed_share)

    def _on_finished(self, trajectory: Trajectory) -> None:
        self._unstored.append(trajectory)
        self._report(min(len(self._unstored), self._settings.size * self._settings.n))

    # --- what is told ---------------------------------------------------------------

    def _store(self, step: int, *, everything: bool = False) -> list[Trajectory]:
        """Write down what is over, in the order of submission, and return it."""
        waiting = {ticket.group.group_id for ticket in self._queue.owed()}
        kept = [t for t in self._unstored if t.group_id in waiting and not everything]
        over = [t for t in self._unstored if t.group_id not in waiting or everything]
        over.sort(key=lambda t: (self._tickets[t.group_id].order, t.index))
        self._unstored = kept
        self._tickets = {k: v for k, v in self._tickets.items() if k in waiting}
        if self._queue.repeatable:
            self._begun = 0
        if over:
            self._run.store(over, step=step)
        return over

    def _metrics(self, taken: Taken, step: int) -> dict[str, float]:
        metrics = {} if self._curriculum is None else self._curriculum.metrics()
        if self._queue.repeatable:
            return metrics
        metrics |= staleness_metrics([t for f in taken.chosen for t in f.usable], step)
        metrics |= {
            "async/under_way": float(self._rollouts.running),
            "async/groups": float(len(self._queue.owed())),
            "async/stale_groups": float(len(taken.again)),
            "async/cut_groups": float(self._cut),
            "async/flat_groups": float(len(taken.discarded) - len(taken.again)),
        }
        self._cut = 0
        return metrics


def staleness_metrics(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    """How old the tokens are that improve ``version``, in updates; tokens count alike.

    ``async/version_share/lag_k`` is the share of tokens sampled ``k`` updates ago.
    """
    lags: Counter[int] = Counter()
    mixed = []
    for trajectory in trajectories:
        seen = [v for turn in trajectory.turns for v in turn.completion.token_versions()]
        lags.update(version - v for v in seen)
        mixed.append(len(set(seen)) > 1)
    tokens = lags.total()
    if not tokens:
        return {}
    return {
        "async/staleness/mean": sum(lag * count for lag, count in lags.items()) / tokens,
        "async/staleness/max": float(max(lags)),
        "async/mixed_trajectories": fmean(mixed),
    } | {f"async/version_share/lag_{lag}": lags[lag] / tokens for lag in sorted(lags)}
