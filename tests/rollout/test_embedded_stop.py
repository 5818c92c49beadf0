"""Stop strings over token bytes, in every kind of vocabulary."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from embedded_kit import END, byte_tokenizer, engine, prompt, using
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.rollout.engines.embedded_stop import StopSet, StopSets, token_bytes
from agent_r1.types import Completion, Finish, SamplingParams

PIECES = [b"x</", b"co", b"de", b"e", b">", b"</code", b">y", b"\xc3", b"\xa9", b"d", b"", b"</"]


def _ends(pieces: list[bytes], stops: tuple[str, ...], tokens: list[int]) -> tuple[int, str] | None:
    """Feed tokens one by one as the engine does; where it ends and why."""
    found = StopSet(pieces, stops, ())
    for count in range(1, len(tokens) + 1):
        if found.candidates[tokens[count - 1]]:
            end = found.check(tokens[:count])
            if end is not None:
                assert end[1] is not None
                return count, end[1]
    return None


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        ([0, 1, 2, 4, 3], 4),  # x</ co de >
        ([5, 6, 3], 2),  # </code >y: begins with one token, ends inside another
        ([3, 3, 0, 1, 9, 3, 10, 4], 8),  # an empty token in between
        ([0, 1, 2, 3, 4], None),
    ],
)
def test_a_stop_string_may_begin_and_end_inside_tokens(
    tokens: list[int], count: int | None
) -> None:
    assert _ends(PIECES, ("</code>",), tokens) == (count and (count, "</code>"))


def test_a_character_may_be_spread_over_tokens() -> None:
    assert _ends(PIECES, ("é>",), [7, 8, 3, 7, 8, 4]) == (6, "é>")
    assert _ends(PIECES, ("é",), [3, 7, 8]) == (3, "é")


def test_the_string_that_is_complete_first_wins() -> None:
    pieces = [b"abcdef", b"ab"]
    assert _ends(pieces, ("def", "abc"), [0]) == (1, "abc")
    assert _ends(pieces, ("bc", "abc"), [0]) == (1, "bc")
    assert _ends(pieces, ("abc", "bc"), [0]) == (1, "abc")


def test_stop_strings_win_over_end_tokens() -> None:
    found = StopSet([b"a", b"b"], ("ab",), (1,))
    assert found.check([0, 1]) == (Finish.STOP, "ab")
    assert found.check([1, 1]) == (Finish.EOS, None)
    assert found.candidates.tolist() == [False, True]


@settings(max_examples=300)
@given(
    st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=20),
    st.lists(st.sampled_from(["</code>", "de>", "x", "é", "e</co", ">y", "dd"]), max_size=3),
)
def test_matching_agrees_with_a_search_of_the_whole_text(
    tokens: list[int], stops: list[str]
) -> None:
    expected = None
    for count in range(1, len(tokens) + 1):
        text = b"".join(PIECES[t] for t in tokens[:count])
        hits = [(text.find(s.encode()) + len(s.encode()), s) for s in stops if s.encode() in text]
        if hits:
            expected = (count, min(hits, key=lambda hit: hit[0])[1])
            break
    assert _ends(PIECES, tuple(stops), tokens) == expected


def test_sets_are_made_once_per_combination() -> None:
    sets = StopSets(PIECES, (3,))
    assert [sets.index((">",), ()), sets.index((), (1,)), sets.index((">",), ())] == [0, 1, 0]
    assert sets.candidates.shape == (2, len(PIECES))
    assert sets.candidates[1].nonzero()[0].tolist() == [1, 3]


def test_bytes_of_a_byte_level_vocabulary() -> None:
    tokenizer = byte_tokenizer()
    table = token_bytes(tokenizer, 320)
    for text in ("x</code>", "é", " é", "日本\n"):
        ids = tokenizer.backend_tokenizer.encode(text).ids
        assert b"".join(table[i] for i in ids) == text.encode()
    assert sorted(table[:256]) == [bytes([i]) for i in range(256)]
    assert table[tokenizer.convert_tokens_to_ids(END)] == END.encode()
    assert table[319] == b""


def _vocabulary(decoder: Any, tokens: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[0]))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_tokens([AddedToken("</code>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_bytes_of_other_vocabularies() -> None:
    pieces = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    assert token_bytes(_vocabulary(pieces, ["▁a", "b▁", "<0xC3>"]), 4) == [
        b" a",
        b"b ",
        b"\xc3",
        b"</code>",
    ]
    assert token_bytes(_vocabulary(decoders.Metaspace(), ["▁a", "é"]), 2) == [b" a", "é".encode()]
    assert token_bytes(_vocabulary(decoders.WordPiece(), ["a", "##b"]), 2) == [b" a", b"b"]
    assert token_bytes(_vocabulary(None, ["a", "b"]), 2) == [b" a", b" b"]


def test_the_engine_stops_where_the_text_does() -> None:
    """Whatever a random model writes: cut at a string it happened to write."""
    tokenizer = byte_tokenizer()
    table = token_bytes(tokenizer, 320)

    def generate(stop: tuple[str, ...]) -> list[Completion]:
        async def body(built: EmbeddedEngine) -> list[Completion]:
            jobs = (
                built.generate(prompt(i, 9), SamplingParams(60, seed=i, stop=stop), f"r{i}")
                for i in range(6)
            )
            return await asyncio.gather(*jobs)

        return using(engine(), body)

    free = [b"".join(table[t] for t in c.token_ids) for c in generate(())]
    ascii_pairs = [
        chr(t[i]) + chr(t[i + 1]) for t in free for i in (20, 30) if max(t[i : i + 2]) < 128
    ]
    assert ascii_pairs
    stopped = 0
    for text, completion in zip(free, generate(tuple(ascii_pairs)), strict=True):
        ends = [text.find(s.encode()) + 2 for s in ascii_pairs if s.encode() in text]
        got = b"".join(table[t] for t in completion.token_ids)
        assert text.startswith(got)
        if ends:
            stopped += 1
            assert completion.finish is Finish.STOP
            assert completion.stop in ascii_pairs
            last = len(table[completion.token_ids[-1]])
            assert len(got) - last < min(ends) <= len(got)
        else:
            assert completion.finish is Finish.LENGTH
    assert stopped >= 2
