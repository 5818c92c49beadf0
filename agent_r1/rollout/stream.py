"""Showing a completion while it is sampled: ids in, text that needs no correction out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent_r1.rollout.codec import Codec, end_token_ids
from agent_r1.types import Turn


class Watcher(Protocol):
    """Looks on while a trajectory happens. Called on the event loop, in this order per turn."""

    def on_text(self, piece: str) -> None:
        """The model wrote on. The pieces of a turn together are its ``text``."""

    def on_written(self, turn: Turn) -> None:
        """The turn is written; the environment is about to look at it."""

    def on_observed(self, turn: Turn) -> None:
        """The environment has answered: calls and observation are in the turn."""


class TextStream:
    """Turns the ids of one completion into pieces of its text.

    A piece never ends inside a character, and text that may be the beginning of a stop
    string is kept back until that is known. Nothing behind a stop string is shown, nor an
    end-of-sequence token. Decoding starts at the piece before, because what a token reads
    as may depend on its neighbour, and so costs the same for every token of a long answer.
    """

    def __init__(self, codec: Codec, stops: Sequence[str], show: Callable[[str], None]) -> None:
        self._codec = codec
        self._ends = end_token_ids(codec.tokenizer)
        self._stops = [stop for stop in stops if stop]
        self._show = show
        self._ids: list[int] = []
        self._start = 0
        """Decoding begins here …"""
        self._read = 0
        """… and what comes before this is shown or held."""
        self._held = ""
        self._shown = 0
        self._over = False

    def feed(self, ids: Sequence[int]) -> None:
        """More ids of the completion."""
        self._ids += ids
        if self._over or not self._ids:
            return
        end = len(self._ids) - (self._ids[-1] in self._ends)
        before = self._codec.decode(self._ids[self._start : self._read])
        after = self._codec.decode(self._ids[self._start : end])
        if after.endswith("\N{REPLACEMENT CHARACTER}"):  # perhaps half of a character
            return
        self._start, self._read = self._read, end
        self._held += after[len(before) :]
        self._release()

    def finish(self, text: str) -> None:
        """The completion's ``text`` is known: show what is missing of it."""
        self._over = True
        self._put(text[self._shown :])

    def _release(self) -> None:
        ends = [at + len(stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self._over = bool(ends)
        count = min(ends) if ends else len(self._held) - self._doubtful()
        piece, self._held = self._held[:count], self._held[count:]
        self._put(piece)

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that a stop string could begin with."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:length])
            ),
            default=0,
        )

    def _put(self, piece: str) -> None:
        if piece:
            self._shown += len(piece)
            self._show(piece)
