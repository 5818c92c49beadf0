"""Groups between sampler and learner: how many to begin, which to train on, which to give up.

A group that begins under version ``v`` may be trained on while the learner makes version
``v + max_staleness + 1`` at the latest: then its oldest token is ``max_staleness`` updates
old. Two rules decide what happens on the way:

* :class:`Waves`: all groups of a step begin together and the step waits for all of them.
  Repeats to the last bit, hence the rule for ``max_staleness=0``.
* :class:`Stream`: new groups begin as soon as there is room, so that there are never more
  than can be used in time (Fu et al. 2025, AReaL, section 4.1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent_r1.rollout.group import Group
from agent_r1.types import Trajectory


@dataclass(frozen=True, slots=True)
class Ticket:
    """A group under way: its place in the order of submission and the version it began with."""

    group: Group
    order: int
    version: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished group. ``usable`` may be fewer; ``informative``: its members differ."""

    ticket: Ticket
    everything: tuple[Trajectory, ...]
    usable: tuple[Trajectory, ...]
    informative: bool

    @property
    def oldest(self) -> int:
        """The oldest version that sampled a token of it."""
        turns = [turn for trajectory in self.usable for turn in trajectory.turns]
        versions = [run[1] for turn in turns for run in turn.completion.versions]
        return min(versions, default=self.ticket.version)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one step trains on, and what was given up to get there."""

    chosen: list[Finished]
    discarded: list[Finished]
    """Finished, and not trained on: without signal, too old, or more than was wanted."""
    again: list[Ticket]
    """Of those, whose tasks are to be sampled again."""


class GroupQueue(Protocol):
    """``take`` and ``overdue`` are told the version that the learner is about to improve."""

    @property
    def repeatable(self) -> bool:
        """Steps do not overlap: an interrupted one begins anew from where its tasks began."""

    def allowance(self, version: int) -> int:
        """How many groups to begin now, while the engine serves this version."""

    def begin(self, ticket: Ticket) -> None: ...

    def finish(self, finished: Finished) -> None: ...

    def take(self, version: int) -> Taken | None:
        """The groups of a step, or None while they are not there yet."""

    def overdue(self, version: int) -> list[Ticket]:
        """Under way, and too old to be used after this version was improved: to be cut off."""

    def owed(self) -> list[Ticket]:
        """Begun and not trained on, in order, without those whose giving up was reported."""


class Waves:
    """``size`` groups at once, and all of them again while too few have signal.

    At most ``rounds`` waves; then what there is must do (Yu et al. 2025, DAPO, section 3.2).
    """

    def __init__(self, size: int, rounds: int) -> None:
        self._size = size
        self._rounds = rounds
        self._begun = 0
        self._taken_at: int | None = None
        self._open: dict[str, Ticket] = {}
        self._done: list[Finished] = []

    @property
    def repeatable(self) -> bool:
        return True

    def allowance(self, version: int) -> int:
        if self._open or self._enough() or self._taken_at == version:
            return 0
        return self._size

    def begin(self, ticket: Ticket) -> None:
        self._open[ticket.group.group_id] = ticket
        self._begun += 1

    def finish(self, finished: Finished) -> None:
        del self._open[finished.ticket.group.group_id]
        self._done.append(finished)

    def take(self, version: int) -> Taken | None:
        if self._open or not self._enough():
            return None
        done = sorted(self._done, key=lambda f: f.ticket.order)
        informative = [f for f in done if f.informative]
        chosen = (informative or [f for f in done if f.usable])[: self._size]
        self._done, self._begun, self._taken_at = [], 0, version
        return Taken(chosen, [f for f in done if f not in chosen], [])

    def overdue(self, version: int) -> list[Ticket]:
        return []

    def owed(self) -> list[Ticket]:
        return []

    def _enough(self) -> bool:
        having = sum(f.informative for f in self._done)
        return having >= self._size or self._begun >= self._size * self._rounds


class Stream:
    """Groups begin whenever there is room; a step takes the oldest of those that are there.

    ``wait``: a step that would leave a group behind to grow too old waits for it first, so
    that nothing is given up. Otherwise such groups are cut off and begun anew. ``surplus``
    further groups are under way than can be used, so that stragglers hold up nobody; they
    are always cut. A step for which ``patience`` groups without signal were sampled trains
    on such. Towards the end of ``steps`` steps no more begin than those will use.

    Why it never stalls: groups that are under way or wait, due by version ``d``, are at no
    time more than the steps up to ``d`` take. The versions that count are the one that the
    engine serves (a group that begins now is due ``max_staleness`` later) and the one that
    the next step improves; they differ while the learner computes, and while the engine is
    behind because weights did not reach it. What is given up holds no place.
    """

    def __init__(
        self, size: int, *, max_staleness: int, wait: bool, surplus: int, patience: int, steps: int
    ) -> None:
        self._size = size
        self._steps = steps
        self._staleness = max_staleness
        self._wait = wait and not surplus
        self._surplus = surplus
        self._patience = patience
        self._next = 0
        """The version that the next step improves."""
        self._open: dict[str, Ticket] = {}
        self._ready: list[Finished] = []
        self._flat: list[Finished] = []
        self._stale: list[Finished] = []

    @property
    def repeatable(self) -> bool:
        return False

    def allowance(self, version: int) -> int:
        self._next = max(self._next, version)
        steps = min(version + self._staleness + 1, self._steps) - self._next
        if steps <= 0:
            return 0
        room = self._size * steps + self._surplus
        return max(0, room - len(self._open) - len(self._ready))

    def begin(self, ticket: Ticket) -> None:
        self._open[ticket.group.group_id] = ticket

    def finish(self, finished: Finished) -> None:
        del self._open[finished.ticket.group.group_id]
        (self._ready if finished.informative else self._flat).append(finished)

    def take(self, version: int) -> Taken | None:
        self._next = max(self._next, version)
        self._give_up_stale(version)
        ready = sorted(self._ready, key=lambda f: (f.ticket.version, f.ticket.order))
        spare = []
        if len(self._flat) >= self._patience:
            spare = [f for f in self._flat if f.usable and not self._too_old(f, version)]
        chosen, rest = [*ready, *spare][: self._size], ready[self._size :]
        left = [*self._open.values(), *(f.ticket for f in rest)]
        if len(chosen) < self._size or (self._wait and not self._in_time(left, version + 1)):
            return None
        flat = [f for f in self._flat if f not in chosen]
        chosen.sort(key=lambda f: f.ticket.order)
        discarded = sorted([*self._stale, *flat], key=lambda f: f.ticket.order)
        again = [f.ticket for f in self._stale]
        self._ready, self._flat, self._stale, self._next = rest, [], [], version + 1
        return Taken(chosen, discarded, again)

    def overdue(self, version: int) -> list[Ticket]:
        late = [t for t in self._open.values() if version + 1 - t.version > self._staleness]
        for ticket in late:
            del self._open[ticket.group.group_id]
        return late

    def owed(self) -> list[Ticket]:
        finished = (f.ticket for f in (*self._ready, *self._stale))
        return sorted([*self._open.values(), *finished], key=lambda ticket: ticket.order)

    def _too_old(self, finished: Finished, version: int) -> bool:
        return version - finished.oldest > self._staleness

    def _give_up_stale(self, version: int) -> None:
        self._stale += [f for f in self._ready if self._too_old(f, version)]
        self._ready = [f for f in self._ready if not self._too_old(f, version)]

    def _in_time(self, left: Sequence[Ticket], version: int) -> bool:
        """Whether the steps from ``version`` on can take all of ``left`` before it is too old."""
        due = Counter(ticket.version + self._staleness for ticket in left)
        load = 0
        for last in sorted(due):
            load += due[last]
            if load > self._size * (last - version + 1):
                return False
        return True


def make_queue(
    size: int, *, max_staleness: int, wait: bool, over_sampling: float, rounds: int, steps: int
) -> GroupQueue:
    """The rule for these settings; ``rounds`` bounds the search for groups with signal."""
    surplus = math.ceil(over_sampling * size)
    if not max_staleness and not surplus:
        return Waves(size, rounds)
    return Stream(
        size,
        max_staleness=max_staleness,
        wait=wait,
        surplus=surplus,
        patience=size * rounds if rounds > 1 else 0,
        steps=steps,
    )
