"""The index on disk: one SQLite file that any number of processes may bring up to date.

::

    blocks    packed rows of numbers (facts.py), a few thousand in each blob
    shown     task, group and excerpt of each trajectory
    names     what the numbers of splits, outcomes, environments and sources stand for
    words, frequent, spans, places    the words of all text (text.py)

Rows are numbered like the records of the run. A run that is resumed cuts its file back; the
index notices, because the records at its end are no longer those it has seen, and forgets
what is gone. Whoever holds SQLite's lock adds to the file, everyone else reads.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import weakref
from collections.abc import Generator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_r1.errors import DataError
from agent_r1.monitor.index.columns import Columns, Mask
from agent_r1.monitor.index.facts import FACTS, Described, describe
from agent_r1.monitor.index.source import Entry, Source
from agent_r1.monitor.index.text import SCHEMA, TextIndex
from agent_r1.monitor.index.words import search_words

INDEX_FILE = "index.sqlite"
VERSION = 3
NAMED = ("split", "outcome", "environment", "source")
BLOCK = 4096
"""Rows below which the last block is written anew with what comes next."""
BATCH = 512
"""Records of one transaction: what a kill loses, and how long others wait for the lock."""

_SCHEMA = f"""{SCHEMA}CREATE TABLE blocks (first INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE shown (number INTEGER PRIMARY KEY, task TEXT, group_id TEXT, excerpt TEXT);
CREATE TABLE names (kind TEXT, name TEXT, number INTEGER, UNIQUE (kind, name));
CREATE TABLE state (key TEXT PRIMARY KEY, value INTEGER);
INSERT INTO state VALUES ('rows', 0), ('document', 0), ('cuts', 0), ('place', 0);
"""


class IndexFile:
    """The index of one source. Not for use by several threads at once."""

    def __init__(self, path: Path, source: Source, environment: str = "") -> None:
        self._source = source
        self._environment = environment
        self._db = _open(path)
        weakref.finalize(self, self._db.close)
        self._text = TextIndex(self._db)
        self._names = {kind: dict[str, int]() for kind in NAMED}
        self._cuts = -1
        self.facts = Columns()
        """Of the rows as of the last :meth:`read`."""
        self.place = 0

    @property
    def rows(self) -> int:
        return self.facts.rows

    @property
    def pending(self) -> int:
        """How much of the source is not in the index yet, in bytes."""
        return self._source.left(self.place)

    def names(self, kind: str) -> list[str]:
        """The names that the numbers of a kind stand for."""
        return sorted(self._names[kind], key=self._names[kind].__getitem__)

    def read(self) -> bool:
        """Take in what the file has now; True if that is something new."""
        state = self._state()
        changed = (state["rows"], state["cuts"]) != (self.rows, self._cuts)
        if changed:
            kept = self.rows if state["cuts"] == self._cuts else 0
            self._load(kept, state["rows"])
            self._cuts = state["cuts"]
            for kind, name, number in self._db.execute("SELECT kind, name, number FROM names"):
                self._names[kind][name] = number
            self._text.load()
        self.place = state["place"]
        return changed

    def extend(self, seconds: float) -> bool:
        """Add new records of the source for about so long; True if something changed.

        Nothing happens while another process adds to the file.

        Raises:
            DataError: a record before the end is damaged.
        """
        deadline = time.monotonic() + seconds
        changed = self.read()
        if not self.pending and self._is_current():
            return changed
        entries: Generator[Entry, None, None] | None = None
        while True:
            with self._writing() as granted:
                if not granted:
                    return changed
                moved = self.read()
                moved |= self._forget_what_is_gone()
                changed |= moved
                if moved or entries is None:
                    entries = self._source.entries(self.place)
                added = self._add(entries, deadline)
            changed |= self.read()
            if not added or time.monotonic() > deadline:
                return changed

    def shown(self, numbers: list[int]) -> dict[int, tuple[str, str, str]]:
        """Task, group and excerpt of some rows."""
        marks = ",".join("?" * len(numbers))
        found = self._db.execute(f"SELECT * FROM shown WHERE number IN ({marks})", numbers)
        return {number: (task, group, excerpt) for number, task, group, excerpt in found}

    def search(self, text: str) -> Mask:
        """``[rows]``: in whose text all words of ``text`` occur.

        The last word may be the beginning of one.
        """
        words, known = search_words(text), self.facts["document"]
        if not words or not self.rows:
            return np.ones(self.rows, dtype=bool)
        last = int(known[-1])
        found = self._text.search(words, text[-1:].isalnum(), last + 1)
        return found if last == self.rows - 1 else found[known]  # others were cut off

    def close(self) -> None:
        self._db.close()

    # --- writing ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[bool]:
        """A transaction; False if another process writes at the moment."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            yield False
            return
        try:
            yield True
        except BaseException:
            self._db.execute("ROLLBACK")
            self._names = {kind: {} for kind in NAMED}
            self._text.forget()
            self._cuts = -1
            self.read()  # all of it again
            raise
        self._db.execute("COMMIT")

    def _is_current(self, row: int = -1) -> bool:
        """Whether the record of a row still stands where it was found."""
        if not self.rows:
            return True
        fact = self.facts.row(row)
        return self._source.check(fact["place"], fact["size"]) == int(fact["check"])

    def _forget_what_is_gone(self) -> bool:
        """Drop the rows from the first whose record is not there any more."""
        if self._is_current():
            return False
        low, high = 0, self.rows - 1  # high is gone; records before a kept one are kept
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._is_current(middle) else (low, middle)
        place = int(self.facts["place"][low])
        first = self._first_of_last_block(low)
        self._db.execute("DELETE FROM blocks WHERE first >= ?", [first])
        if low > first:
            self._write_block(first, self.facts.packed(first, low))
        self._db.execute("DELETE FROM shown WHERE number >= ?", [low])
        self._set(rows=low, place=place, cuts=self._cuts + 1)
        self.read()
        return True

    def _add(self, entries: Generator[Entry, None, None], deadline: float) -> int:
        """One transaction's worth of records; how many there were."""
        document = self._state()["document"]
        rows: list[tuple[Any, ...]] = []
        shown: list[tuple[int, str, str, str]] = []
        texts: list[str] = []
        place = self.place
        for entry in entries:
            number = self.rows + len(rows)
            try:
                described = describe(entry.line, self._environment)
            except DataError:
                if not rows:
                    raise
                entries.close()  # what came before is kept; the next call raises
                break
            rows.append(self._row(described, entry, document + len(rows)))
            shown.append((number, described.task, described.group_id, described.excerpt))
            texts.append(described.text)
            place = entry.next
            if len(rows) == BATCH or time.monotonic() > deadline:
                break
        if not rows:
            return 0
        self._db.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", shown)
        self._text.add(document, texts)
        self._append_block(np.array(rows, FACTS))
        self._set(rows=self.rows + len(rows), document=document + len(rows), place=place)
        return len(rows)

    def _row(self, described: Described, entry: Entry, document: int) -> tuple[Any, ...]:
        numbers: dict[str, float] = dict(described.numbers)
        for kind, name in described.names.items():
            numbers[kind] = self._number_of(kind, name)
        numbers |= {"place": entry.place, "size": entry.size, "check": entry.check}
        numbers["document"] = document
        return tuple(numbers[field] for field in FACTS.names or ())

    def _number_of(self, kind: str, name: str) -> int:
        known = self._names[kind]
        if name not in known:
            known[name] = len(known)
            self._db.execute(
                "INSERT OR IGNORE INTO names VALUES (?, ?, ?)", [kind, name, known[name]]
            )
        return known[name]

    def _append_block(self, rows: NDArray[Any]) -> None:
        first = self._first_of_last_block(self.rows)
        if self.rows - first < BLOCK:
            rows = np.concatenate([self.facts.packed(first, self.rows), rows])
        else:
            first = self.rows
        self._write_block(first, rows)

    def _write_block(self, first: int, rows: NDArray[Any]) -> None:
        self._db.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", [first, rows.tobytes()])

    # --- reading ----------------------------------------------------------------------

    def _first_of_last_block(self, before: int) -> int:
        (first,) = self._db.execute(
            "SELECT max(first) FROM blocks WHERE first < ?", [max(before, 1)]
        ).fetchone()
        return int(first or 0)

    def _load(self, kept: int, rows: int) -> None:
        """Rows from ``kept`` to ``rows`` out of the blocks that have them."""
        self.facts.resize(rows)
        first = self._first_of_last_block(kept + 1)
        for start, data in self._db.execute(
            "SELECT first, data FROM blocks WHERE first >= ? ORDER BY first", [first]
        ):
            self.facts.put(start, np.frombuffer(data, FACTS))

    def _state(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT key, value FROM state"))

    def _set(self, **state: int) -> None:
        for key, value in state.items():
            self._db.execute("UPDATE state SET value = ? WHERE key = ?", [value, key])


def place_for(folder: Path) -> Path:
    """Where the index of a folder is kept: there, or in the user's cache if that is not allowed."""
    if os.access(folder, os.W_OK):
        return folder / INDEX_FILE
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agent-r1"
    cache.mkdir(parents=True, exist_ok=True)
    name = blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    return cache / f"index-{name}.sqlite"


def _open(path: Path) -> sqlite3.Connection:
    """The file, made if it is missing, of another version, or damaged."""
    for attempt in (1, 2):
        db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")  # a lost index is built again
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version={VERSION};COMMIT;")
                version = VERSION
            if version == VERSION:
                return db
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) or attempt == 2:
                db.close()
                raise DataError(f"{path} cannot be opened ({error}); delete it") from error
        db.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    raise AssertionError("unreachable")
