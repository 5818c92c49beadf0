"""Truncation and neutralising of tool output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.tool.text import between, neutralise, presentable, truncate


@given(st.text(max_size=300), st.integers(1, 200))
def test_never_longer_than_the_limit_and_untouched_when_it_fits(text, limit):
    cut = truncate(text, limit)
    assert len(cut) <= limit
    assert (cut == text) == (len(text) <= limit)


def test_the_mark_says_how_much_is_missing():
    text = "a" * 500 + "b" * 500
    head, rest = truncate(text, 200).split("\n... [")
    count, tail = rest.split(" characters cut] ...\n")
    assert len(head) + int(count) + len(tail) == 1000
    assert set(head) == {"a"} and set(tail) == {"b"}


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301",  # a letter with a combining accent
        "\U0001f469\u200d\U0001f52c",  # woman scientist: three code points
        "\U0001f44d\U0001f3fd",  # thumbs up with a skin tone
        "\u0915\u093f",  # Devanagari letter with a vowel sign
        "\r\n",
    ],
)
@pytest.mark.parametrize("limit", range(80, 90))
def test_no_visible_character_is_halved(character, limit):
    cut = truncate(character * 100, limit)
    head, rest = cut.split("\n... [")
    tail = rest.split("] ...\n")[1]
    assert head == character * (len(head) // len(character))
    assert tail == character * (len(tail) // len(character))
    assert head and tail


def test_a_hostile_run_of_marks_is_still_cut():
    assert len(truncate("a" + "\u0301" * 10_000, 100)) <= 100


@given(st.text(alphabet="<|/imend_coe> s", max_size=60))
def test_nothing_that_acts_is_left(text):
    clean = neutralise(text, ["</code>"])
    assert "<|im_end|>" not in clean
    assert "</code>" not in clean
    assert clean.replace(" ", "") == text.replace(" ", "")  # only spaces were added


def test_ordinary_text_is_untouched():
    text = "if a < b and c | d: print('<p>', x |= y, list<int>)"
    assert neutralise(text, ["</code>"]) == text


@given(st.text(alphabet="<|im>\U0001f469\u200d x", max_size=200), st.integers(1, 150))
def test_what_is_shown_is_short_and_harmless(text, limit):
    shown = presentable(text * 3, limit, ["<mi>"])
    assert len(shown) <= limit
    assert "<|im|>" not in shown and "<mi>" not in shown


def test_between_finds_complete_spans_in_order():
    assert between("a<x>1</x><x></x>b<x>2<x>3</x></x><x>4", "<x>", "</x>") == ["1", "", "2<x>3"]
    assert between("<x>" * 300_000, "<x>", "</x>") == []
