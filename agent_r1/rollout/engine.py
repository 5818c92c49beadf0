"""The seam between an agent loop and whatever samples tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from agent_r1.types import Completion, SamplingParams

OnTokens = Callable[[Sequence[int]], None]
"""Receives sampled ids as they come, on the caller's event loop."""


class Engine(Protocol):
    """Samples completions for prompts given as token ids.

    Life of a trajectory: ``open([id, …])`` announces a wave, then ``generate`` once per
    turn with the same ``request_id``, then ``release(id)``. An engine may keep the state
    of a request between turns (a KV cache) and so compute only what the new prompt adds;
    a prompt that does not extend the previous one is computed anew. Engines for which
    announcing means nothing implement ``open`` and ``release`` as no-ops.

    Raises :class:`agent_r1.errors.EngineError`. Cancelling ``generate`` frees its slot.
    """

    @property
    def max_model_len(self) -> int:
        """Largest prompt plus completion, in tokens."""

    def open(self, request_ids: Sequence[str]) -> None: ...

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> Completion: ...

    def release(self, request_id: str) -> None: ...

    async def load_weights(self, source: Any, version: int) -> None:
        """Serve the weights of ``source`` from now on. No request may be in flight."""

    async def close(self) -> None: ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that can be watched while it samples, for people who wait for an answer."""

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        on_tokens: OnTokens,
    ) -> Completion:
        """Like ``generate``. All ids of the completion have reached ``on_tokens`` before it."""
