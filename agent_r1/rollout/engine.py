"""The interface between an agent loop and a generation engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agent_r1.types import Completion, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from agent_r1.models.lora import Adapter

OnTokens = Callable[[Sequence[int]], None]
"""Receives sampled ids as they come, on the caller's event loop."""


@runtime_checkable
class WeightSource(Protocol):
    """The weights of the policy as they are when an iterator is consumed."""

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The trainer's own tensors by its own names, adapters apart from their base."""

    def checkpoint(self) -> Iterable[tuple[str, Tensor]]:
        """Tensors as a model folder of Hugging Face has them, adapters merged."""


@runtime_checkable
class AdapterSource(WeightSource, Protocol):
    """Weights of which training may change nothing but adapters: those are enough to send."""

    def adapters(self) -> Mapping[str, Adapter]:
        """By the names that their weights have in ``checkpoint``. Empty: anything may change."""

    def base(self) -> Iterable[tuple[str, Tensor]]:
        """``checkpoint`` without what the adapters add; the same at all times."""


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

    async def load_weights(self, source: Any, version: int, *, keep_cache: bool = False) -> int:
        """Serve the weights of ``source`` (a :class:`WeightSource`) from the next token on.

        Requests in flight go on, and their completions say which version wrote what. Keys
        and values of the tokens that they have so far are computed anew, or with
        ``keep_cache`` stay those of the older weights. Returns how many bytes were moved. An
        :class:`agent_r1.errors.EngineError` leaves the version before in service.
        """

    async def close(self) -> None: ...


@runtime_checkable
class RestingEngine(Engine, Protocol):
    """An engine that can give its memory up while nothing is sampled."""

    async def rest(self) -> None:
        """Until the next ``load_weights``. Does nothing where that is not configured."""


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
