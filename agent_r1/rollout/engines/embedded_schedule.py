"""When sequences run: virtual time, waves and the rule that makes batches reproducible.

Which rows share a batch changes the last bits of their logits. If a sequence rejoined
whenever its tool happens to return, two runs with the same seeds would differ. So time is
counted in engine steps, and in deterministic mode a sequence rejoins at a step that is
known when it leaves:

* the requests of an announced wave start together, once every member has submitted its
  first request or was released;
* a sequence whose turn ended at step ``s`` rejoins at step ``s + readmit_after``, rounded up
  to a multiple of ``readmit_every`` (a step that computes prompts beside decoding can cost
  several that only decode, so that those who return had better share one); at that step the
  engine waits until it has submitted again or was released, and a release takes
  effect then, not earlier;
* when nothing is left to compute, time jumps to the next such step.

Composition is then a function of seeds and texts. Sequences that were never announced,
were cancelled or were given up on are not waited for. One wave is reproducible; what runs
beside it (a second wave, unannounced requests) joins whenever it comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from agent_r1.errors import EngineError
from agent_r1.rollout.engines.embedded_report import TokenFeed
from agent_r1.types import SamplingParams


class Phase(Enum):
    """Where a sequence is."""

    AWAY = auto()
    """With its environment: no request."""
    QUEUED = auto()
    """Submitted, not yet admitted."""
    PREFILL = auto()
    """In a slot, its prompt being computed."""
    DECODE = auto()
    """One row of the decode batch."""


class Verdict(Enum):
    """What the engine can do now."""

    RUN = auto()
    BLOCKED = auto()
    """Sequences that must act first have not."""
    IDLE = auto()
    """There is nothing to compute and no request that waits."""


@dataclass(slots=True, eq=False)
class Request:
    """One call of ``generate``, or of ``stream`` if there is a ``feed``.

    ``limit`` is ``max_new_tokens`` clamped to the context.
    """

    prompt: list[int]
    params: SamplingParams
    limit: int
    reply: Any
    feed: TokenFeed | None = None


@dataclass(slots=True, eq=False)
class Tracked:
    """A sequence known to the engine, from its announcement to its release.

    ``tokens`` is the prompt while a request runs and prompt plus completion afterwards;
    the keys and values of its first ``computed`` tokens are in ``slot``.
    """

    id: str
    order: int
    awaited: bool
    wave: set[str] | None = None
    phase: Phase = Phase.AWAY
    request: Request | None = None
    due: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None
    used: int = 0
    """The step of its last activity, for eviction."""
    released: bool = False
    """Over, but in its slot until the step at which it was expected back."""
    source: Tracked | None = None
    """The sequence whose common prefix will be copied instead of computed."""
    shared: int = 0
    """Length of that prefix."""
    versions: list[tuple[int, int]] = field(default_factory=list)
    """Of the completion being sampled: runs of ``(first token, version of the weights)``."""

    def mark(self, count: int, version: int) -> None:
        """Tokens from number ``count`` on are sampled by ``version``."""
        self.versions = [run for run in self.versions if run[0] < count] + [(count, version)]

    @property
    def working(self) -> bool:
        """Whether it is part of the present steps."""
        return self.phase in (Phase.PREFILL, Phase.DECODE)

    @property
    def expected(self) -> bool:
        """Whether the engine waits for its return, or would if it were not over already."""
        return self.awaited or self.released

    @property
    def held(self) -> bool:
        """Whether it belongs to a wave that is not complete."""
        return bool(self.wave)


class Schedule:
    """All sequences, and virtual time."""

    def __init__(self, deterministic: bool, readmit_after: int, readmit_every: int = 1) -> None:
        self.step = 0
        self.late = 0
        """How many sequences were given up on."""
        self._deterministic = deterministic
        self._readmit_after = readmit_after if deterministic else 0
        self._readmit_every = readmit_every if deterministic else 1
        self._known: dict[str, Tracked] = {}
        self._leaving: list[Tracked] = []
        self._orders = 0

    def __iter__(self) -> Iterator[Tracked]:
        return iter([*self._known.values(), *self._leaving])

    def open(self, ids: Sequence[str]) -> list[Tracked]:
        """Announce a wave; returns sequences of the same names, which are over now."""
        over = [self._known[name] for name in ids if name in self._known]
        for sequence in over:
            self._leave_wave(sequence)
        wave = set(ids) if self._deterministic else None
        for name in ids:
            self._add(name, awaited=self._deterministic, wave=wave)
        return over

    def submit(self, name: str, request: Request) -> None:
        sequence = self._known.get(name) or self._add(name, awaited=False, wave=None)
        if sequence.request is not None:
            raise EngineError(f"{name} has a request in flight; await it before the next one")
        sequence.request = request
        sequence.phase = Phase.QUEUED
        self._leave_wave(sequence)
        if not sequence.awaited:
            sequence.due = self.step

    def get(self, name: str) -> Tracked | None:
        return self._known.get(name)

    def release(self, name: str) -> Tracked | None:
        """Forget a sequence; returns it if its slot is free from now on."""
        sequence = self._known.pop(name, None)
        if sequence is None:
            return None
        self._leave_wave(sequence)
        if sequence.awaited and sequence.phase is Phase.AWAY and sequence.due > self.step:
            sequence.released = True
            self._leaving.append(sequence)
            return None
        return sequence

    def turn_over(self, sequence: Tracked) -> None:
        """The sequence goes to its environment and is expected back."""
        sequence.request = None
        sequence.phase = Phase.AWAY
        sequence.used = self.step
        due = self.step + self._readmit_after
        sequence.due = -(-due // self._readmit_every) * self._readmit_every

    def abandon(self, sequence: Tracked) -> None:
        """The request ended without a completion: nothing is expected any more."""
        sequence.request = None
        sequence.phase = Phase.AWAY
        sequence.awaited = False
        sequence.source = None

    def gone(self) -> list[Tracked]:
        """Released sequences whose release takes effect at this step."""
        over = [sequence for sequence in self._leaving if sequence.due <= self.step]
        if over:
            self._leaving = [s for s in self._leaving if s.due > self.step]
        return over

    def over(self) -> bool:
        """Whether every sequence was released. Time then passes to where the last is gone."""
        if self._known:
            return False
        self.step = max([self.step, *(s.due for s in self._leaving)])
        return True

    def ready(self) -> list[Tracked]:
        """Requests to admit at this step, in order: what has begun is finished first."""
        found = [
            s
            for s in self._known.values()
            if s.phase is Phase.QUEUED and not s.held and s.due <= self.step
        ]
        return sorted(found, key=lambda s: (not s.tokens, s.due, s.order))

    def poll(self) -> Verdict:
        """Decide what can be done now; moves time forward over steps without work."""
        requests = working = False
        upcoming: list[int] = []
        for sequence in self._known.values():
            requests = requests or sequence.request is not None
            if sequence.working:
                working = True
            elif not sequence.held and (sequence.awaited or sequence.request is not None):
                upcoming.append(sequence.due)
        if not working and upcoming:
            self.step = max(self.step, min(upcoming))
        if self._missing():
            return Verdict.BLOCKED if requests else Verdict.IDLE
        if working or any(due <= self.step for due in upcoming):
            return Verdict.RUN
        return Verdict.BLOCKED if requests else Verdict.IDLE

    def expects(self) -> bool:
        """Whether an announced sequence has still to act."""
        return any(s.awaited and s.phase is Phase.AWAY for s in self._known.values())

    def give_up(self) -> list[str]:
        """Stop waiting for whoever is missing; returns their names."""
        names = []
        for sequence in self._known.values():
            absent = sequence.wave is not None and sequence.id in sequence.wave
            if absent or sequence in self._missing():
                sequence.awaited = False
                names.append(sequence.id)
        for sequence in self._known.values():
            if sequence.wave is not None:
                sequence.wave.clear()
        self.late += len(names)
        return names

    def _missing(self) -> list[Tracked]:
        return [
            s
            for s in self._known.values()
            if s.awaited and s.phase is Phase.AWAY and not s.held and s.due <= self.step
        ]

    def _add(self, name: str, *, awaited: bool, wave: set[str] | None) -> Tracked:
        self._known.pop(name, None)
        sequence = Tracked(name, self._orders, awaited, wave, due=self.step)
        self._orders += 1
        self._known[name] = sequence
        return sequence

    def _leave_wave(self, sequence: Tracked) -> None:
        """The wave waits no longer for this member; the last one starts the wave."""
        if sequence.wave is None or sequence.id not in sequence.wave:
            return
        sequence.wave.discard(sequence.id)
        if sequence.wave:
            return
        members = [s for s in self._known.values() if s.wave is sequence.wave]
        if not any(s.awaited or s.request for s in self._known.values() if s not in members):
            # The wave before is over, whether its last releases came before or after time
            # reached their steps: from here on it must have left nothing behind.
            self.step = max([self.step, *(s.due for s in self._leaving)])
        for member in members:
            member.due = max(member.due, self.step)
