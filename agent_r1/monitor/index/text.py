"""Full text: which documents have which words, at the same speed for rare and for common words.

A word that few documents have is found by FTS5. Listing a million of them for a word that all
have takes seconds there, so that words which turned out frequent are kept apart, as sets of
documents that numpy joins::

    words      FTS5 over the distinct words of each document that are not frequent
    frequent   the frequent words and their numbers; a beginning of words has a ``^`` before it
    spans      ranges of documents: the first, how many, and whether no more will come
    places     which documents of a span have a frequent word: a bitmap, or positions if few

A word is frequent from the document on at which it was found so; the documents before are in
FTS5, and both are asked. The shortest beginnings, which a person types first, are always kept
as frequent words are.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_r1.monitor.index.words import Pairs, heads_of, join_words, pair_words

SCHEMA = """
CREATE VIRTUAL TABLE words USING fts5(
    text, content='', detail=none, columnsize=0, tokenize='ascii'
);
CREATE TABLE frequent (word TEXT PRIMARY KEY, number INTEGER);
CREATE TABLE spans (first INTEGER PRIMARY KEY, size INTEGER, full INTEGER);
CREATE TABLE places (
    span INTEGER, word INTEGER, documents BLOB, PRIMARY KEY (span, word)
) WITHOUT ROWID;
"""
COUNTED = 1024
"""Documents after which it is decided which of their words are frequent."""
SHARE = 32
"""A word is frequent if one of so many documents has it."""
SPAN = 4096
"""Most documents of a span."""
OPEN = 16
"""Spans that are not full, at most: each search reads all spans."""

HEAD = 2
"""Characters of the longest beginnings that are kept as frequent words are."""

Mask = NDArray[np.bool_]
Parts = list[tuple[int, NDArray[np.int64]]]
"""Words by their numbers, and positions of documents within a span, ascending."""


class TextIndex:
    """The words of numbered documents, in tables of a database. Transactions are the caller's."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.forget()

    def forget(self) -> None:
        """Drop what is known of the tables, as after a rollback; :meth:`load` reads it again."""
        self._frequent: dict[str, int] = {}
        self._heads: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._counted = 0

    def load(self) -> None:
        """Take in the frequent words that were added since."""
        known = len(self._frequent) + len(self._heads)
        for word, number in self._db.execute(
            "SELECT word, number FROM frequent WHERE number >= ?", [known]
        ):
            self._note(word, number)

    def add(self, first: int, texts: Sequence[str]) -> None:
        """Add the documents ``first``, ``first + 1``, …, which must be beyond all others."""
        pairs = pair_words(texts)
        words, of_word, of_text = pairs
        numbers = np.array([self._frequent.get(word, -1) for word in words], np.int64)
        rare = numbers[of_word] < 0
        self._db.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)",
            enumerate(join_words(Pairs(words, of_word[rare], of_text[rare]), len(texts)), first),
        )
        counts = np.bincount(of_word, minlength=len(words))
        self._count(words, np.where(numbers < 0, counts, 0))
        parts = _of_frequent(numbers, counts, of_text) + self._of_heads(pairs, len(texts))
        self._make_room(len(texts))
        self._write_span(first, len(texts), False, sorted(parts, key=itemgetter(0)))
        self._counted += len(texts)
        if self._counted >= COUNTED:
            self._promote()

    def search(self, words: Sequence[str], beginning: bool, size: int) -> Mask:
        """Which of the documents below ``size`` have all the words.

        ``beginning``: the last may be the beginning of a word.
        """
        found = np.ones(size, dtype=bool)
        for i, word in enumerate(words):
            found &= self._having(word, beginning and i == len(words) - 1, size)
        return found

    # --- writing ----------------------------------------------------------------------

    def _count(self, words: list[str], counts: NDArray[np.int64]) -> None:
        met = np.flatnonzero(counts)
        self._counts.update(dict(zip([words[i] for i in met], counts[met].tolist(), strict=True)))

    def _of_heads(self, pairs: Pairs, texts: int) -> Parts:
        """The beginnings of words, and the texts that have them."""
        found: Parts = []
        for length in range(1, HEAD + 1):
            heads, place = heads_of(pairs.words, length)
            having = np.zeros((len(heads), texts), dtype=bool)
            having[place[pairs.of_word], pairs.of_text] = True
            for head, row in zip(heads, having, strict=True):
                if head not in self._heads:
                    self._name(f"^{head}")
                if len(head) == length:  # shorter words have been beginnings of their own
                    found.append((self._heads[head], np.flatnonzero(row)))
        return found

    def _name(self, word: str) -> None:
        number = len(self._frequent) + len(self._heads)
        self._db.execute("INSERT INTO frequent VALUES (?, ?)", [word, number])
        self._note(word, number)

    def _note(self, word: str, number: int) -> None:
        if word.startswith("^"):
            self._heads[word[1:]] = number
        else:
            self._frequent[word] = number

    def _promote(self) -> None:
        """From the next document on, words are kept apart that many of the last ones had."""
        for word, count in self._counts.items():
            if count * SHARE >= self._counted:
                self._name(word)
        self._counts.clear()
        self._counted = 0

    def _make_room(self, size: int) -> None:
        """Join the spans at the end, if they are many or would be too long with the next."""
        spans = self._db.execute("SELECT first, size FROM spans WHERE NOT full").fetchall()
        full = sum(size for _, size in spans) + size > SPAN
        if not full and len(spans) < OPEN:
            return
        joined: dict[int, list[NDArray[Any]]] = {}
        start = min((first for first, _ in spans), default=0)
        for span, word, documents in self._db.execute(
            "SELECT span, word, documents FROM places WHERE span >= ? ORDER BY span", [start]
        ):
            joined.setdefault(word, []).append(_positions(documents) + np.uint16(span - start))
        self._db.execute("DELETE FROM places WHERE span >= ?", [start])
        self._db.execute("DELETE FROM spans WHERE first >= ?", [start])
        if spans:
            parts = ((word, np.concatenate(joined[word])) for word in sorted(joined))
            self._write_span(start, sum(size for _, size in spans), full, parts)

    def _write_span(
        self, first: int, size: int, full: bool, parts: Iterable[tuple[int, NDArray[Any]]]
    ) -> None:
        self._db.execute("INSERT INTO spans VALUES (?, ?, ?)", [first, size, full])
        self._db.executemany(
            "INSERT INTO places VALUES (?, ?, ?)",
            ((first, word, _packed(positions)) for word, positions in parts),
        )

    # --- reading ----------------------------------------------------------------------

    def _having(self, word: str, beginning: bool, size: int) -> Mask:
        found = np.zeros(size + SPAN, dtype=bool)
        if beginning and len(word) <= HEAD:
            numbers = [self._heads[word]] if word in self._heads else []
        else:
            numbers = self._frequent_like(word, beginning)
            documents = self._rare(f'"{word}"*' if beginning else f'"{word}"')
            found[documents[documents < size]] = True
        self._mark(numbers, found, size)
        return found[:size]

    def _frequent_like(self, word: str, beginning: bool) -> list[int]:
        if beginning:
            return [n for each, n in self._frequent.items() if each.startswith(word)]
        return [self._frequent[word]] if word in self._frequent else []

    def _rare(self, asked: str) -> NDArray[np.int64]:
        (found,) = self._db.execute(
            "SELECT group_concat(rowid, ' ') FROM words WHERE words MATCH ?", [asked]
        ).fetchone()
        return np.fromstring(found or "", dtype=np.int64, sep=" ")

    def _mark(self, numbers: list[int], found: Mask, size: int) -> None:
        """Set what has one of these words, or beginnings."""
        if not numbers:
            return
        marks = ",".join("?" * len(numbers))
        for span, documents in self._db.execute(
            "SELECT span, documents FROM spans CROSS JOIN places ON span = first "
            f"WHERE first < ? AND word IN ({marks})",
            [size, *numbers],
        ):
            if len(documents) == SPAN // 8:
                found[span : span + SPAN] |= _bits(documents)
            else:
                found[span : span + SPAN][_positions(documents)] = True


def _of_frequent(
    numbers: NDArray[np.int64], counts: NDArray[np.int64], of_text: NDArray[np.int64]
) -> Parts:
    """The frequent words by their numbers, and the texts that have them."""
    ends = np.cumsum(counts)
    kept = np.flatnonzero((numbers >= 0) & (counts > 0))
    bounds = zip(numbers[kept].tolist(), (ends - counts)[kept], ends[kept], strict=True)
    return [(number, of_text[start:end]) for number, start, end in bounds]


def _packed(positions: NDArray[Any]) -> bytes:
    """Positions within a span: as they are if few, else a bit for each document."""
    if 2 * len(positions) < SPAN // 8:
        return positions.astype("<u2").tobytes()
    bits = np.zeros(SPAN, dtype=bool)
    bits[positions] = True
    return np.packbits(bits).tobytes()


def _positions(documents: bytes) -> NDArray[np.uint16]:
    if len(documents) == SPAN // 8:
        return np.flatnonzero(_bits(documents)).astype(np.uint16)
    return np.frombuffer(documents, "<u2")


def _bits(documents: bytes) -> Mask:
    return np.unpackbits(np.frombuffer(documents, np.uint8)).view(bool)
