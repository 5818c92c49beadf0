"""The words of a text, as the full-text index keeps them and a search asks for them.

Letters and digits make words, everything else parts them. Case and the marks above and below
letters do not count. Each ideograph is a word of its own, because nothing stands between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LONGEST = 256
"""Characters that count of a word: what is longer is data, and found by its beginning."""

_PLAIN = "".join(c.lower() if c.isalnum() else " " for c in map(chr, range(128)))
_WORDS = re.compile(r"[^\W_]+")
_MARKS = re.compile("[\u0300-\u036f]+")
_IDEOGRAPHS = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff])")
_BITS = 16


def folded(text: str) -> str:
    """The words in their order, spaces between them, as they are compared."""
    if text.isascii():
        return text.translate(_PLAIN)
    plain = _MARKS.sub("", normalize("NFD", text.casefold()))
    return " ".join(_WORDS.findall(_IDEOGRAPHS.sub(r" \1 ", normalize("NFC", plain))))


def search_words(text: str) -> list[str]:
    """The words that a full-text search asks for; all of them must occur."""
    return [word[:LONGEST] for word in folded(text).split()]


class Pairs(NamedTuple):
    """Which texts have which words, each pair once, by word and then by text.

    ``words``: every word once. ``of_word`` and ``of_text``, ``[pairs]``, are numbers of a word
    and of a text.
    """

    words: list[str]
    of_word: NDArray[np.int64]
    of_text: NDArray[np.int64]


def pair_words(texts: Sequence[str]) -> Pairs:
    """The distinct words of up to 65,536 texts."""
    lists = pc.ascii_split_whitespace(pa.array(map(folded, texts), pa.large_string()))
    coded = lists.values.dictionary_encode()
    words = coded.dictionary.to_pylist()
    if max(map(len, words), default=0) > LONGEST:
        coded = pc.utf8_slice_codeunits(lists.values, 0, LONGEST).dictionary_encode()
        words = coded.dictionary.to_pylist()
    text_of = np.repeat(np.arange(len(texts)), np.diff(lists.offsets.to_numpy()))
    of_word, of_text = _distinct(coded.indices.to_numpy(), text_of)
    if "" in words:  # before a separator at the beginning, and after one at the end
        kept = of_word != words.index("")
        of_word, of_text = of_word[kept], of_text[kept]
    return Pairs(words, of_word, of_text)


def join_words(pairs: Pairs, count: int) -> list[str]:
    """The words of each of the texts 0 to ``count - 1``, spaces between them."""
    order = np.argsort(pairs.of_text.astype(np.uint16), kind="stable")
    values = pa.array(pairs.words, pa.large_string()).take(pa.array(pairs.of_word[order]))
    ends = np.cumsum(np.bincount(pairs.of_text, minlength=count))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, values)
    joined: list[str] = pc.binary_join(lists, pa.scalar(" ", values.type)).to_pylist()
    return joined


def heads_of(words: list[str], length: int) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct beginnings of words, and the place of each word's among them."""
    cut = pc.utf8_slice_codeunits(pa.array(words, pa.string()), 0, length).dictionary_encode()
    return cut.dictionary.to_pylist(), cut.indices.to_numpy().astype(np.int64)


def _distinct(
    first: NDArray[Any], second: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair of numbers once, in order; the second below 65,536."""
    wide = len(first) > 0 and int(first.max()) >= 1 << (32 - _BITS)
    kind = np.uint64 if wide else np.uint32  # half the size is sorted twice as fast
    pairs: NDArray[Any] = first.astype(kind)
    pairs <<= _BITS
    pairs |= second.astype(kind)
    pairs.sort()
    if len(pairs):
        pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    return (pairs >> _BITS).astype(np.int64), (pairs & ((1 << _BITS) - 1)).astype(np.int64)
