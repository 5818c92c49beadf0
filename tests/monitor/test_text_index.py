"""Full text is found as by reading everything, whether words are rare, frequent or change."""

import random
import re
import sqlite3
from collections import Counter

import numpy as np
import pytest

from agent_r1.monitor.index import text as text_index
from agent_r1.monitor.index.text import SCHEMA, TextIndex
from agent_r1.monitor.index.words import LONGEST, search_words


@pytest.fixture
def small(monkeypatch):
    """Decisions and joins that take thousands of documents, within tens."""
    for name, value in {"COUNTED": 20, "SHARE": 4, "SPAN": 64, "OPEN": 3}.items():
        monkeypatch.setattr(text_index, name, value)


@pytest.fixture
def db():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    yield db
    db.close()


def made_texts(count, seed=0):
    """Some words in all, some in a half, most in few, and some only in a part of the run."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcd", k=rng.randint(1, 5))) for _ in range(400)]
    for i in range(count):
        chosen = [word for j, word in enumerate(words) if rng.random() < 3 / (j + 3)]
        yield f"Every-one {' '.join(chosen)} {'late' if i > count // 2 else 'EARLY'}. doc{i}"


def scan(texts, asked, beginning):
    """As a reader would find them."""
    *whole, last = asked
    for i, text in enumerate(texts):
        words = set(re.findall("[a-z0-9]+", text.lower()))
        ends = any(word.startswith(last) for word in words) if beginning else last in words
        if ends and words.issuperset(whole):
            yield i


def test_searches_find_what_a_plain_scan_finds(db, small):
    index, texts = TextIndex(db), list(made_texts(500))
    start, rng = 0, random.Random(1)
    while start < len(texts):
        size = rng.choice([1, 2, 7, 30])
        index.add(start, texts[start : start + size])
        start += size
    words = sorted({word for text in texts for word in search_words(text)})
    for _ in range(300):
        asked = rng.choices(words, k=rng.choice([1, 1, 2, 3]))
        beginning = rng.random() < 0.5
        if beginning:
            asked[-1] = asked[-1][: rng.randint(1, 4)]
        found = np.flatnonzero(index.search(asked, beginning, len(texts)))
        assert found.tolist() == list(scan(texts, asked, beginning)), (asked, beginning)
    assert index.search(["every", "one"], False, len(texts)).all()
    assert not index.search(["everyon"], False, len(texts)).any()


def test_what_all_have_is_soon_no_longer_listed_one_by_one(db, small):
    index = TextIndex(db)
    for start in range(0, 400, 10):
        index.add(start, [f"common rare{start + i}" for i in range(10)])
    (listed,) = db.execute("SELECT count(*) FROM words WHERE words MATCH 'common'").fetchone()
    assert listed == 20
    spans = db.execute("SELECT first, size, full FROM spans ORDER BY first").fetchall()
    assert sum(size for _, size, _ in spans) == 400 and len(spans) <= 400 // 60 + 4
    assert all(first + size == spans[i + 1][0] for i, (first, size, _) in enumerate(spans[:-1]))
    assert index.search(["common"], False, 400).all()
    assert np.flatnonzero(index.search(["common", "rare123"], False, 400)).tolist() == [123]


def test_a_reader_and_another_writer_know_the_same_words(db, small):
    first, second, reader = TextIndex(db), TextIndex(db), TextIndex(db)
    texts = list(made_texts(200, seed=2))
    for start in range(0, 200, 10):
        writer = first if start % 60 < 30 else second
        writer.load()
        writer.add(start, texts[start : start + 10])
    reader.load()
    for word, _ in Counter(w for text in texts for w in search_words(text)).most_common(60):
        found = np.flatnonzero(reader.search([word], False, 200))
        assert found.tolist() == list(scan(texts, [word], False))


def test_what_was_rolled_back_is_forgotten(db, small):
    index = TextIndex(db)
    index.add(0, ["alpha beta"] * 15)
    db.execute("BEGIN")
    index.add(15, ["alpha gamma"] * 15)
    db.execute("ROLLBACK")
    index.forget()
    index.load()
    index.add(15, ["alpha delta"] * 30)
    assert index.search(["alpha"], False, 45).all()
    assert not index.search(["ga"], True, 45).any()
    assert index.search(["del"], True, 45).sum() == 30


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Straße", "STRASSE"),
        ("e\u0301te\u0301", "été"),
        ("数学", "学"),
        ("がく", "が"),
        ("snake_case", "case"),
        ("x—y", "y"),
        ("\u041e\u0414\u0418\u041d", "\u043e\u0434\u0438\u043d"),
    ],
)
def test_letters_are_compared_as_people_do(db, text, asked):
    index = TextIndex(db)
    index.add(0, ["nothing", text])
    assert index.search(search_words(asked), False, 2).tolist() == [False, True]


def test_a_megabyte_without_a_space_is_found_by_its_beginning(db):
    index = TextIndex(db)
    data = "ab12" * 250_000
    index.add(0, [data, "plain", ""])
    assert index.search(search_words(data), False, 3).tolist() == [True, False, False]
    assert index.search(search_words(data[:9]), True, 3).tolist() == [True, False, False]
    (kept,) = db.execute(
        "SELECT count(*) FROM words WHERE words MATCH ?", ["a" * LONGEST]
    ).fetchone()
    assert kept == 0
