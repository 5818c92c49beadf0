"""Where sequences live: slots, their eviction, dense decode rows and shared prefixes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from agent_r1.rollout.engines.embedded_schedule import Phase, Tracked
from agent_r1.rollout.prefixes import common_prefix

_BLOCK = 16
_GRACE = 16
Move = tuple[Tracked, int, int]
"""A sequence, the slot it leaves and the slot it goes to."""


class SlotTable:
    """Gives slots to sequences and keeps those that decode in slots ``0..n-1``.

    Dense rows let one view of the cache serve the whole batch, and a row that finished
    costs nothing any more. Sequences that wait for their environment keep their slot: those
    that are due back at a known step always, others until another one needs it, and while
    the engine has other work for ``_GRACE`` steps at least, as computing a lost prompt again
    costs more than a slot that is empty for the time of a tool call. The least recently
    active is evicted first. All choices follow from virtual time and announced order alone.
    """

    def __init__(self, limit: int) -> None:
        self.rows: list[Tracked] = []
        """Row ``i`` decodes in slot ``i``."""
        self.evictions = 0
        self._limit = limit
        self._free: list[int] = []
        self._occupant: list[Tracked | None] = []

    @property
    def size(self) -> int:
        """Slots ``0..size-1`` have been used."""
        return len(self._occupant)

    def admit(self, sequence: Tracked, step: int) -> bool:
        """Give the sequence a slot, evicting an idle one if need be; False if there is none."""
        if sequence.slot is not None:
            return True
        if not self._free and len(self._occupant) < self._limit:
            self._occupant.append(None)
            heapq.heappush(self._free, len(self._occupant) - 1)
        if not self._free:
            victim = self._victim(step)
            if victim is None:
                return False
            self.evictions += 1
            self.free(victim)
        sequence.slot = heapq.heappop(self._free)
        self._occupant[sequence.slot] = sequence
        return True

    def free(self, sequence: Tracked) -> None:
        """Take the slot away; the sequence's keys and values are lost."""
        if sequence.slot is not None:
            self._occupant[sequence.slot] = None
            heapq.heappush(self._free, sequence.slot)
        sequence.slot = None
        sequence.computed = 0

    def arrange(self, entrants: Sequence[Tracked]) -> list[Move]:
        """Drop rows that no longer decode, add ``entrants``, make rows dense again.

        Entrants fill the holes, then the last rows do. Returns what has to be copied.
        """
        holes = [i for i, row in enumerate(self.rows) if row.phase is not Phase.DECODE]
        if not holes and not entrants:
            return []
        waiting = list(entrants)
        rows: list[Tracked | None] = [r if r.phase is Phase.DECODE else None for r in self.rows]
        for hole in holes[: len(waiting)]:
            rows[hole] = waiting.pop(0)
        rows.extend(waiting)
        for hole in reversed(holes[len(entrants) :]):
            last = rows.pop()
            if hole < len(rows):
                rows[hole] = last
        self.rows = [row for row in rows if row is not None]
        return self._settle()

    def _settle(self) -> list[Move]:
        """Swap every row into the slot of its number."""
        origin: dict[Tracked, int] = {}
        for target, row in enumerate(self.rows):
            slot, other = row.slot, self._occupant[target]
            assert slot is not None
            if slot == target:
                continue
            origin.setdefault(row, slot)
            if other is not None:
                origin.setdefault(other, target)
                other.slot = slot
            self._occupant[target], self._occupant[slot] = row, other
            row.slot = target
        if origin:
            self._free = [i for i, seq in enumerate(self._occupant) if seq is None]
        return [(s, old, s.slot) for s, old in origin.items() if s.slot not in (None, old)]

    def clear(self) -> None:
        """Every slot is empty, every sequence without one."""
        for sequence in self._occupant:
            if sequence is not None:
                sequence.slot, sequence.computed = None, 0
        self.rows, self._free, self._occupant = [], [], []

    def _victim(self, step: int) -> Tracked | None:
        """The idle sequence to evict."""
        oldest = step - _GRACE if any(s and s.working for s in self._occupant) else step
        idle = [
            s
            for s in self._occupant
            if s is not None and not s.working and not s.expected and s.used <= oldest
        ]
        return min(idle, key=lambda s: (s.used, s.order), default=None)


class PrefixIndex:
    """Finds a sequence in a slot whose tokens begin like a new prompt.

    Whole prompts and their leading blocks of 16 tokens are keyed by hash; a hit is
    confirmed token by token. Siblings of a group so compute their prompt once, and
    prompts with a common preamble compute that once.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Tracked] = {}
        self._keys: dict[Tracked, list[int]] = {}

    def find(self, sequence: Tracked) -> tuple[Tracked, int] | None:
        """The source of the longest known prefix, and its length in tokens."""
        prompt = sequence.tokens
        for key in reversed(_keys(prompt)):
            source = self._entries.get(key)
            if source is None or source is sequence or source.slot is None:
                continue
            running = source.phase in (Phase.PREFILL, Phase.DECODE)
            reach = len(source.tokens) - 1 if running else source.computed
            length = common_prefix(source.tokens, prompt, min(reach, len(prompt) - 1))
            if length:
                return source, length
        return None

    def add(self, sequence: Tracked) -> None:
        self.remove(sequence)
        mine = []
        for key in _keys(sequence.tokens):
            if self._entries.setdefault(key, sequence) is sequence:
                mine.append(key)
        self._keys[sequence] = mine

    def remove(self, sequence: Tracked) -> None:
        for key in self._keys.pop(sequence, ()):
            del self._entries[key]

    def clear(self) -> None:
        self._entries.clear()
        self._keys.clear()


def _keys(prompt: Sequence[int]) -> list[int]:
    """Chained hashes of the leading blocks, then of the whole prompt."""
    keys: list[int] = []
    last = 0
    for end in range(_BLOCK, len(prompt), _BLOCK):
        last = hash((last, *prompt[end - _BLOCK : end]))
        keys.append(last)
    keys.append(hash((last, len(prompt), *prompt[len(keys) * _BLOCK :])))
    return keys
