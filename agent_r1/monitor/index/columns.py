"""The numbers of all rows in memory, and what is computed of them: groups, order, counts.

Each column is in one piece, so that a filter of a million rows reads what it compares and
nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent_r1.monitor.index.facts import FACTS

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Columns:
    """Rows of :data:`FACTS`. ``columns["step"]`` is ``[rows]``, not to be written to."""

    def __init__(self) -> None:
        self._columns = {name: np.zeros(0, FACTS[name]) for name in FACTS.names or ()}
        self.rows = 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name][: self.rows]

    def row(self, number: int) -> dict[str, Any]:
        """One row as plain numbers; negative ones count from the end."""
        return {name: self[name][number].item() for name in self._columns}

    def packed(self, first: int, end: int) -> NDArray[Any]:
        """``[end - first]`` of :data:`FACTS`: those rows as they are written to disk."""
        rows = np.zeros(end - first, FACTS)
        for name in self._columns:
            rows[name] = self[name][first:end]
        return rows

    def resize(self, rows: int) -> None:
        """Cut to so many rows, or make place for them; what is new is undefined until put."""
        if rows > len(self._columns["step"]):
            size = max(rows, self.rows * 5 // 4)
            for name, column in self._columns.items():
                self._columns[name] = np.zeros(size, column.dtype)
                self._columns[name][: self.rows] = column[: self.rows]
        self.rows = rows

    def put(self, first: int, rows: NDArray[Any]) -> None:
        """Set rows from ``first`` on; those beyond the end are passed over."""
        end = min(first + len(rows), self.rows)
        for name, column in self._columns.items():
            column[first:end] = rows[name][: end - first]


def numbered(keys: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
    """The distinct keys, ascending, and for each key its place among them."""
    low = int(keys.min()) if len(keys) else 0
    reach = int(keys.max()) - low + 1 if len(keys) else 0
    if reach > 4 * len(keys) + 1024:
        names, place = np.unique(keys, return_inverse=True)
        return names, place.astype(np.int64)
    met = np.bincount(keys - low, minlength=reach) > 0
    return np.flatnonzero(met) + low, (np.cumsum(met) - 1)[keys - low]


class StepSums(NamedTuple):
    """One step of a split, which is a number. ``reward`` and ``success`` are of the scored."""

    step: tuple[int, int]
    size: int
    scored: int
    reward: float
    success: int
    tokens: int
    outcomes: list[int]


def step_sums(facts: Columns, fits: Mask | slice, splits: int, outcomes: int) -> list[StepSums]:
    """Every step of every split among the rows that fit, in order."""
    step, split, outcome = (facts[name][fits] for name in ("step", "split", "outcome"))
    scored = facts["success"][fits] >= 0
    names, part = numbered(step.astype(np.int64) * splits + split)
    kinds = np.bincount(part * outcomes + outcome, minlength=len(names) * outcomes)
    sums = [
        np.bincount(part),
        np.bincount(part[scored], minlength=len(names)),
        np.bincount(part, np.where(scored, facts["reward"][fits], 0.0)),
        np.bincount(part, np.where(scored, facts["success"][fits], 0)).astype(np.int64),
        np.bincount(part, facts["tokens"][fits]).astype(np.int64),
    ]
    counts = kinds.reshape(len(names), -1).tolist() if len(names) else []
    rows = zip(*(each.tolist() for each in (names, *sums)), counts, strict=True)
    return [StepSums(divmod(name, splits), *row) for name, *row in rows]


def group_numbers(groups: NDArray[np.uint64]) -> Numbers:
    """``[rows]``: a number from 0 on for the group of each row; siblings mostly stand together."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))[: len(groups)]
    _, number = np.unique(groups[starts], return_inverse=True)
    return np.repeat(number.astype(np.int64), np.diff(starts, append=len(groups)))


def spread(groups: NDArray[np.uint64], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of the rewards of each row's group; NaN where nothing was scored."""
    group = group_numbers(groups)
    known = ~np.isnan(rewards)
    values = np.where(known, rewards, 0.0)
    with np.errstate(invalid="ignore"):
        count = np.bincount(group, known)
        mean = np.bincount(group, values) / count
        square = np.bincount(group, np.where(known, (values - mean[group]) ** 2, 0.0)) / count
    return np.asarray(np.sqrt(square)[group])


def first_places(values: NDArray[np.float64], count: int, descending: bool) -> Numbers:
    """Places of the first ``count`` values in order: NaN last, equal ones as they stand.

    The whole order takes ten times as long as its beginning.
    """
    keys = -values if descending else values
    if count <= 0 or not len(keys):
        return np.zeros(0, np.int64)
    bound = np.partition(keys, count - 1)[count - 1] if count < len(keys) else np.nan
    if np.isnan(bound):
        return np.argsort(keys, kind="stable")[:count]
    before = np.flatnonzero(keys < bound)
    equal = np.flatnonzero(keys == bound)[: count - len(before)]
    return np.concatenate([before[np.argsort(keys[before], kind="stable")], equal])


def histogram(values: NDArray[Any], bins: int) -> tuple[list[float], list[int], int]:
    """Edges, counts, and how many are NaN; equal widths, integers where there are few."""
    wide = values.astype(np.float64)
    known = wide[np.isfinite(wide)]
    if not len(known):
        return [], [], len(values)
    low, high = float(known.min()), float(known.max())
    if high - low < bins and bool(np.all(known == np.round(known))):
        bins, low, high = int(high - low) + 1, low - 0.5, high + 0.5
    counts, edges = np.histogram(known, bins, (low, high if high > low else low + 1))
    return edges.tolist(), counts.tolist(), len(values) - len(known)
