"""Find trajectories of a run: by step, outcome, reward, length, tools, source and full text.

::

    index = RunIndex(Path("runs/my/run"))
    while index.pending:            # a run that was never looked at before
        index.refresh()
    page = index.page(Query(outcome="length", reward_max=0, sort="tokens", limit=20))
    index.trajectory(page.rows[0].key)["turns"]

A folder is that of a run, which may be training, or of an evaluation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray

from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor.index import columns
from agent_r1.monitor.index.build import NAMED, IndexFile, place_for
from agent_r1.monitor.index.source import open_source

SORTS = (
    "number",
    "step",
    "reward",
    "turns",
    "tokens",
    "length",
    "tool_calls",
    "tool_errors",
    "staleness",
    "seconds",
    "spread",
)
"""``number`` is the order of writing. ``spread`` is that of the rewards of the siblings."""
_REMEMBERED = 8
_BEGINNING = 10_000
"""Rows up to which a page is found without putting everything in order."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which trajectories, and which of them to show. ``None`` asks for nothing.

    Bounds are inclusive; a bound of the reward leaves out what has none. ``text``: all its
    words must occur in prompt, model's text, environment's text, error or task id; the last
    may be a beginning.
    """

    split: str | None = None
    step_from: int | None = None
    step_to: int | None = None
    outcome: str | None = None
    environment: str | None = None
    source: str | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    tokens_min: int | None = None
    tokens_max: int | None = None
    success: bool | None = None
    tool_error: bool | None = None
    text: str | None = None
    sort: str = "number"
    descending: bool = True
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory at a glance. ``tokens`` the model wrote; ``length`` has all others as well.

    ``key`` names it within the run: its number among the records, in the order of writing.
    ``reward`` and ``success`` are None where it was not scored. ``staleness`` counts the
    updates between the policy of its oldest token and that of its step.
    """

    key: str
    step: int
    split: str
    task: str
    group: str
    sibling: int
    reward: float | None
    success: bool | None
    outcome: str
    turns: int
    tokens: int
    length: int
    tool_calls: int
    tool_errors: int
    environment: str
    source: str
    excerpt: str
    staleness: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Page:
    """``total`` counts all rows that fit, not only those of the page."""

    rows: tuple[Row, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts[i]`` values lie in ``edges[i] <= v < edges[i + 1]``, the last edge included.

    ``missing`` have no such value.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int


@dataclass(frozen=True, slots=True)
class StepSummary:
    """One step of a split. ``reward`` is the mean of what was scored, None without any."""

    step: int
    split: str
    count: int
    scored: int
    reward: float | None
    success: float | None
    tokens: float
    outcomes: dict[str, int]


Field = Literal["reward", "tokens", "length", "turns", "tool_calls", "staleness", "seconds"]


class RunIndex:
    """The trajectories of one folder, found by their properties.

    Opening takes as long as reading some 100 bytes for each trajectory; nothing else is read
    until it is asked for. Everything may be called from any thread. What a run adds appears
    after :meth:`refresh`.

    Raises:
        DataError: the folder holds no trajectories' file, or its index cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = open_source(folder)
        self._lock = RLock()
        self._index = IndexFile(place_for(folder), self._source, _environment(folder))
        self._found: OrderedDict[Query, NDArray[np.int64]] = OrderedDict()
        self._spread: NDArray[np.float64] | None = None
        self._index.read()

    @property
    def count(self) -> int:
        """Trajectories that can be found."""
        return self._index.rows

    @property
    def pending(self) -> int:
        """What the run has written and :meth:`refresh` has not taken in, in bytes."""
        with self._lock:
            return self._index.pending

    def refresh(self, seconds: float = 0.25) -> bool:
        """Take in what has been written, for about ``seconds``; True when something is new.

        A large run without an index is taken in over many calls; :attr:`pending` says how
        much is left. Records that a resumed run has cut off disappear.
        """
        with self._lock:
            changed = self._index.extend(seconds)
            if changed:
                self.forget()
            return changed

    def look(self) -> bool:
        """Take in what others have added to the index; True when something is new.

        Takes milliseconds, also while another :class:`RunIndex` of the folder is refreshed.
        """
        with self._lock:
            changed = self._index.read()
            if changed:
                self.forget()
            return changed

    def forget(self) -> None:
        """Drop the remembered answers to the last questions, as a change of the run does."""
        with self._lock:
            self._found.clear()
            self._spread = None

    def page(self, query: Query) -> Page:
        """The rows of one page, in order; those without a value come last.

        Raises:
            ConfigError: ``sort`` is no field to sort by.
        """
        with self._lock:
            return Page(self._rows(self._first(query)), len(self._fitting(query)))

    def keys(self, query: Query) -> list[str]:
        """The keys of everything that fits, in order: what a page walks through."""
        with self._lock:
            return [str(number) for number in self._ordered(query)]

    def around(self, key: str, query: Query) -> tuple[str | None, str | None]:
        """The keys before and after one in the order of :meth:`keys`; None where there is none.

        Two Nones as well where ``key`` is not among what fits.
        """
        with self._lock:
            found = self._ordered(query)
        at = np.flatnonzero(found == int(key)) if key.isdecimal() else found[:0]
        if not len(at):
            return None, None
        place = int(at[0])
        return (
            str(found[place - 1]) if place else None,
            str(found[place + 1]) if place + 1 < len(found) else None,
        )

    def row(self, key: str) -> Row:
        """Raises ``DataError`` if there is none of that key."""
        with self._lock:
            return self._rows(np.array([self._number(key)]))[0]

    def trajectory(self, key: str, *, arrays: bool = False) -> dict[str, Any]:
        """The whole record as it was written: see ``monitor/records.py``.

        ``arrays``: its numbers are numpy arrays where the file has them as such, which takes a
        tenth of the time and of the memory.

        Raises:
            DataError: there is none of that key, or it has been cut off since.
        """
        with self._lock:
            fact = self._index.facts.row(self._number(key))
            record = self._source.record(fact["place"], fact["size"], arrays=arrays)
        if record is None:
            raise DataError(f"trajectory {key} of {self.folder} has been cut off since; refresh")
        return record

    def siblings(self, key: str) -> tuple[Row, ...]:
        """The trajectories of the same task in the same step, itself included, in order."""
        with self._lock:
            facts = self._index.facts
            same = np.flatnonzero(facts["group"] == facts["group"][self._number(key)])
            return self._rows(same[np.argsort(facts["sibling"][same], kind="stable")])

    def histogram(self, field: Field, query: Query, bins: int = 20) -> Histogram:
        """How a number is distributed over what fits; equal widths, integers where it has few."""
        with self._lock:
            values = self._index.facts[field][self._fits(query)]
            edges, counts, missing = columns.histogram(values, bins)
        return Histogram(tuple(edges), tuple(counts), missing)

    def counts(self, field: str, query: Query) -> dict[str, int]:
        """How many of what fits have each split, outcome, environment or source."""
        with self._lock:
            if field not in NAMED:
                raise ConfigError(f"cannot count by {field}; choose one of {', '.join(NAMED)}")
            numbers = self._index.facts[field][self._fits(query)]
            counts = np.bincount(numbers, minlength=len(self._index.names(field)))
            return dict(zip(self._index.names(field), counts.tolist(), strict=True))

    def step_counts(self, query: Query) -> dict[int, int]:
        """How many of what fits each step has; steps without any are not named."""
        with self._lock:
            steps = self._index.facts["step"][self._fits(query)].astype(np.int64)
            names, part = columns.numbered(steps)
            return dict(zip(names.tolist(), np.bincount(part).tolist(), strict=True))

    def steps(self, split: str | None = None) -> tuple[StepSummary, ...]:
        """Every step of a split, or of all of them, in order."""
        with self._lock:
            fits = self._fits(Query(split=split))
            splits, outcomes = self._index.names("split"), self._index.names("outcome")
            found = columns.step_sums(self._index.facts, fits, len(splits), len(outcomes))
        return tuple(
            StepSummary(
                step=step,
                split=splits[number],
                count=count,
                scored=scored,
                reward=reward / scored if scored else None,
                success=success / scored if scored else None,
                tokens=tokens / count,
                outcomes={outcomes[k]: count for k, count in enumerate(kinds) if count},
            )
            for (step, number), count, scored, reward, success, tokens, kinds in found
        )

    def close(self) -> None:
        with self._lock:
            self._index.close()

    # --- which rows -------------------------------------------------------------------

    def _number(self, key: str) -> int:
        if not key.isdecimal() or int(key) >= self._index.rows:
            raise DataError(f"{self.folder} has no trajectory {key}")
        return int(key)

    def _first(self, query: Query) -> NDArray[np.int64]:
        """The numbers of one page, in order."""
        end = query.offset + query.limit
        if query.sort == "number" or _whole(query) in self._found or end > _BEGINNING:
            return self._ordered(query)[query.offset : end]
        numbers = self._fitting(query)
        places = columns.first_places(self._values(query.sort)[numbers], end, query.descending)
        return numbers[places[query.offset :]]

    def _ordered(self, query: Query) -> NDArray[np.int64]:
        """The numbers of everything that fits, in order."""
        numbers = self._fitting(query)
        if query.sort == "number":
            return numbers[::-1] if query.descending else numbers

        def order() -> NDArray[np.int64]:
            values = self._values(query.sort)[numbers]
            return numbers[columns.first_places(values, len(values), query.descending)]

        return self._remembered(_whole(query), order)

    def _fitting(self, query: Query) -> NDArray[np.int64]:
        """Ascending numbers of the rows that fit."""
        asked = replace(_whole(query), sort="number", descending=False)

        def find() -> NDArray[np.int64]:
            return np.arange(self._index.rows)[self._fits(asked)]

        return self._remembered(asked, find)

    def _remembered(self, asked: Query, find: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
        if asked not in self._found:
            self._found[asked] = find()
        self._found.move_to_end(asked)
        if len(self._found) > _REMEMBERED:
            self._found.popitem(last=False)
        return self._found[asked]

    def _values(self, sort: str) -> NDArray[np.float64]:
        """``[rows]``: what the rows are sorted by."""
        if sort not in SORTS:
            raise ConfigError(f"sort={sort} is none of {', '.join(SORTS)}")
        facts = self._index.facts
        if sort != "spread":
            return facts[sort].astype(np.float64)
        if self._spread is None:
            self._spread = columns.spread(facts["group"], facts["reward"])
        return self._spread

    def _fits(self, query: Query) -> columns.Mask | slice:
        """Which rows fit, to choose them from a column; all of them where nothing is asked."""
        facts = self._index.facts
        fits: list[columns.Mask] = []
        for kind in NAMED:
            if (name := getattr(query, kind)) is not None:
                names = self._index.names(kind)
                fits.append(facts[kind] == (names.index(name) if name in names else 65535))
        for field, low, high in (
            ("step", query.step_from, query.step_to),
            ("reward", query.reward_min, query.reward_max),
            ("tokens", query.tokens_min, query.tokens_max),
        ):
            if low is not None:
                fits.append(facts[field] >= low)
            if high is not None:
                fits.append(facts[field] <= high)
        if query.tool_error is not None:
            fits.append((facts["tool_errors"] > 0) == query.tool_error)
        if query.success is not None:
            fits.append(facts["success"] == int(query.success))
        if query.text and query.text.strip():
            fits.append(self._index.search(query.text))
        return np.logical_and.reduce(fits) if fits else slice(None)

    def _rows(self, numbers: NDArray[np.int64]) -> tuple[Row, ...]:
        shown = self._index.shown(numbers.tolist())
        names = {kind: self._index.names(kind) for kind in NAMED}
        return tuple(
            _row(number, self._index.facts.row(number), shown[number], names)
            for number in numbers.tolist()
        )


def _environment(folder: Path) -> str:
    """What the settings of the run name; empty if they are not there."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return str(settings["tool"]["env"] or "")
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def _whole(query: Query) -> Query:
    """What is asked, whichever page of it is shown."""
    return replace(query, offset=0, limit=0)


def _row(number: int, fact: Any, shown: tuple[str, str, str], names: dict[str, list[str]]) -> Row:
    reward, success = float(fact["reward"]), int(fact["success"])
    named = {kind: names[kind][int(fact[kind])] for kind in NAMED}
    return Row(
        key=str(number),
        step=int(fact["step"]),
        split=named["split"],
        task=shown[0],
        group=shown[1],
        sibling=int(fact["sibling"]),
        reward=None if math.isnan(reward) else reward,
        success=None if success < 0 else bool(success),
        outcome=named["outcome"],
        turns=int(fact["turns"]),
        tokens=int(fact["tokens"]),
        length=int(fact["length"]),
        tool_calls=int(fact["tool_calls"]),
        tool_errors=int(fact["tool_errors"]),
        environment=named["environment"],
        source=named["source"],
        excerpt=shown[2],
        staleness=int(fact["staleness"]),
        seconds=round(float(fact["seconds"]), 3),
    )


def as_json(value: Page | Row | Histogram | StepSummary) -> dict[str, Any]:
    """Plain data of a result, for a page."""
    return dict(msgspec.to_builtins(value))
