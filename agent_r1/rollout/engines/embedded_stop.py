"""Where a completion ends: end tokens, and stop strings that need not align with tokens.

Matching works on the bytes that tokens stand for, because a stop string may begin in the
middle of one token and end in the middle of another, and because one character may be
spread over several tokens. Only tokens that contain the last byte of some stop string
can complete it, so a vectorised look-up discards nearly every sampled token and the
matcher proper runs on the few that remain.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_r1.types import Finish


class StopSet:
    """The ends of a completion for one combination of stop strings and end tokens.

    ``candidates[V]`` is True for the tokens after which :meth:`check` must be asked.
    """

    __slots__ = ("_bytes", "_end_ids", "_reach", "_stops", "candidates")

    def __init__(
        self, token_bytes: Sequence[bytes], stops: Sequence[str], end_ids: Iterable[int]
    ) -> None:
        self._bytes = token_bytes
        self._stops = tuple((text, text.encode()) for text in stops if text)
        self._end_ids = frozenset(end_ids)
        self._reach = max((len(raw) for _, raw in self._stops), default=1) - 1
        lasts = {raw[-1] for _, raw in self._stops}
        self.candidates = np.zeros(len(token_bytes), dtype=np.bool_)
        for index, raw in enumerate(token_bytes):
            self.candidates[index] = not lasts.isdisjoint(raw)
        for index in self._end_ids:
            if 0 <= index < len(token_bytes):
                self.candidates[index] = True

    def check(self, token_ids: Sequence[int]) -> tuple[Finish, str | None] | None:
        """Whether the last of the completion's tokens ends it, given that none before did.

        A stop string wins over an end token, the string that is complete first wins over
        others, and the order in which they were given decides what is left.
        """
        found = self._find(token_ids)
        if found is not None:
            return Finish.STOP, found
        if int(token_ids[-1]) in self._end_ids:
            return Finish.EOS, None
        return None

    def _find(self, token_ids: Sequence[int]) -> str | None:
        if not self._stops:
            return None
        tail = self._tail(token_ids)
        text = tail + self._bytes[token_ids[-1]]
        best: tuple[int, str] | None = None
        for stop, raw in self._stops:
            at = text.find(raw, max(0, len(tail) - len(raw) + 1))
            if at >= 0 and (best is None or at + len(raw) < best[0]):
                best = (at + len(raw), stop)
        return best[1] if best else None

    def _tail(self, token_ids: Sequence[int]) -> bytes:
        """The bytes before the last token that a stop string could still reach back to."""
        tail = b""
        for index in range(len(token_ids) - 2, -1, -1):
            if len(tail) >= self._reach:
                break
            tail = self._bytes[token_ids[index]] + tail
        return tail


class StopSets:
    """Makes and remembers the :class:`StopSet` of each combination of parameters."""

    def __init__(self, token_bytes: Sequence[bytes], eos_ids: Iterable[int]) -> None:
        self._bytes = token_bytes
        self._eos_ids = tuple(eos_ids)
        self._known: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
        self.sets: list[StopSet] = []
        self.candidates: NDArray[np.bool_] = np.zeros((0, len(token_bytes)), dtype=np.bool_)
        """``[C, V]``: the candidate tokens of every set made so far."""

    def index(self, stops: tuple[str, ...], stop_token_ids: tuple[int, ...]) -> int:
        """The number of the set for these parameters, to index ``sets`` and ``candidates``."""
        key = (stops, stop_token_ids)
        if key not in self._known:
            made = StopSet(self._bytes, stops, (*self._eos_ids, *stop_token_ids))
            self._known[key] = len(self.sets)
            self.sets.append(made)
            self.candidates = np.concatenate([self.candidates, made.candidates[None]])
        return self._known[key]


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """The bytes that each token id contributes to decoded text, for ids below ``vocab_size``.

    Byte-level, byte-fallback/metaspace and word-piece vocabularies are told apart by the
    tokenizer's decoder; without one, tokens are words that decoding joins with spaces.
    Added tokens go the same way (Gemma's runs of spaces are such). Ids without a token give
    no bytes.
    """
    convert = _converter(tokenizer)
    result = [b""] * vocab_size
    for token, index in tokenizer.get_vocab().items():
        if 0 <= index < vocab_size:
            result[index] = convert(token)
    return result


def _converter(tokenizer: Any) -> Any:
    kinds = _decoder_kinds(tokenizer)
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _metaspace
    if "WordPiece" in kinds:
        return _word_piece
    return _byte_level if _looks_byte_level(tokenizer) else _plain


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """The types named in the decoder of a ``tokenizers`` backend; empty if there is none."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in [state, *state.get("decoders", [])]}


def _looks_byte_level(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "byte_decoder")


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The inverse of the printable alphabet that byte-level vocabularies are written in.

    Printable Latin-1 bytes stand for themselves; the others follow from code point 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + offset): byte for offset, byte in enumerate(others)})
    return table


def _byte_level(token: str) -> bytes:
    table = _byte_of_char()
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()


def _metaspace(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _word_piece(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else b" " + token.encode()


def _plain(token: str) -> bytes:
    return b" " + token.encode()
