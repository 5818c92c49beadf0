"""What passes between the engine's thread and its callers: answers and counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agent_r1.rollout.engine import OnTokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was built."""

    generated_tokens: int = 0
    prefill_tokens: int = 0
    """Prompt tokens that were computed, the one that each turn's decoding starts from included."""
    reused_tokens: int = 0
    """Prompt tokens whose keys and values were still there from the turn before."""
    shared_tokens: int = 0
    """Prompt tokens copied from another sequence with the same beginning."""
    decode_steps: int = 0
    """Forward passes that sampled."""
    decode_rows: int = 0
    """Rows computed in them; equals ``generated_tokens`` as no finished row is computed."""
    steps: int = 0
    """Forward passes."""
    busy_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Waiting for announced sequences that were with their environments."""
    evictions: int = 0
    late_sequences: int = 0
    """Sequences that were given up on after ``max_wait_s``."""
    policy_version: int = 0


class Reply(Generic[T]):
    """The future of an asyncio caller, to be resolved from the engine's thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()

    def set(self, value: T) -> None:
        self._call(self._set_result, value)

    def fail(self, error: BaseException) -> None:
        self._call(self._set_exception, error)

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # The caller's loop is closed: nobody waits any more.
            return

    def _set_result(self, value: T) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _set_exception(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class TokenFeed:
    """Carries a row's tokens to an asyncio caller as they are sampled."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_tokens = on_tokens

    def put(self, token: int) -> None:
        try:
            self._loop.call_soon_threadsafe(self._on_tokens, (token,))
        except RuntimeError:  # The caller's loop is closed: nobody listens any more.
            return


@dataclass(slots=True)
class Counters:
    """The counts of :class:`EngineStats` that the loop keeps itself."""

    generated: int = 0
    prefill: int = 0
    reused: int = 0
    shared: int = 0
    decode_steps: int = 0
    rows: int = 0
    steps: int = 0
    busy: float = 0.0
    wait: float = 0.0
