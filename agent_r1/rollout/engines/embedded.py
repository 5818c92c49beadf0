"""The embedded engine: generation inside the trainer's process, on the trainer's weights."""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from agent_r1.errors import EngineError
from agent_r1.models.load import torch_dtype
from agent_r1.rollout.engine import OnTokens, WeightSource
from agent_r1.rollout.engines.embedded_cache import SlotCache
from agent_r1.rollout.engines.embedded_graph import (
    CudaRecorder,
    DecodeGraphs,
    RunAgain,
)
from agent_r1.rollout.engines.embedded_loop import DecodeLoop
from agent_r1.rollout.engines.embedded_memory import slots_within
from agent_r1.rollout.engines.embedded_model import Twin, make_runner
from agent_r1.rollout.engines.embedded_native import load_native
from agent_r1.rollout.engines.embedded_report import EngineStats, Reply, TokenFeed
from agent_r1.rollout.engines.embedded_schedule import Request, Schedule
from agent_r1.rollout.engines.embedded_slots import SlotTable
from agent_r1.rollout.engines.embedded_stop import StopSets, token_bytes
from agent_r1.types import Completion, SamplingParams

__all__ = ["EmbeddedEngine", "EngineStats"]

_LOG = logging.getLogger(__name__)
_READMIT_EVERY = 8
"""Steps between those at which sequences rejoin where decode steps are recorded: prompts are
computed apart from them there, by single launches that take as long as several such steps."""


class EmbeddedEngine:
    """Continuous batching over a transformers causal language model; an ``Engine``.

    The engine computes with the very parameters of ``model``, so an optimizer's step is
    served by the next request: ``load_weights`` has nothing to copy, it forgets what was
    computed with the old values and sets the version. It must be called after every
    update, as keys and values of the old weights would mix with the new ones otherwise.
    A sequence keeps its keys and values between turns; a prompt that extends them is
    computed from where they end. Prompts with a common beginning compute it once.

    ``max_slots`` sequences hold keys and values at a time, fewer where those of full length
    would take more than ``memory_share`` of the device's memory; others queue. The memory is
    given back when no sequence is left, unless ``free_when_idle`` is false: then recorded steps
    (``graphs``) need not be recorded again for the next wave.

    With ``deterministic`` the batches, and so tokens and log-probabilities to the last bit,
    depend on seeds and texts only, not on how long tools take: see
    :mod:`.embedded_schedule` for the rule.
    All sequences that run together must then be announced by one ``open`` and each must
    submit or be released; whoever does neither for ``max_wait_s`` is no longer waited
    for. ``readmit_after`` is the number of steps after which a sequence rejoins.

    A completion ends with ``Finish.STOP`` when a stop string is complete, with
    ``Finish.EOS`` at an end token (the model's own, ``stop_token_ids``), and with
    ``Finish.LENGTH`` at ``max_new_tokens`` or at the end of the context. ``eos_ids``
    replaces the end tokens that the model's generation config and the tokenizer name.
    ``native=False`` does without compiled kernels (they serve float32 on the CPU and are
    left out anyway where no C compiler is found). ``dtype`` is that of matrix products, where
    it shall be another than the weights': ``bfloat16`` is about three times as fast on
    processors that know it, at the price of a second copy of them. ``graphs`` records decode
    steps and replays them (:mod:`.embedded_graph`); by default where there is a GPU.
    """

    shares_weights = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_model_len: int,
        max_slots: int = 256,
        memory_share: float = 0.4,
        deterministic: bool = True,
        readmit_after: int = 8,
        prefill_chunk: int = 2048,
        max_wait_s: float = 600.0,
        eos_ids: Iterable[int] | None = None,
        native: bool = True,
        dtype: torch.dtype | str | None = None,
        graphs: bool | None = None,
        free_when_idle: bool = True,
    ) -> None:
        if min(max_model_len, max_slots, readmit_after, prefill_chunk) < 1 or max_wait_s <= 0:
            raise EngineError(
                "max_model_len, max_slots, readmit_after, prefill_chunk and max_wait_s must be "
                f"positive, not {max_model_len}, {max_slots}, {readmit_after}, {prefill_chunk}, "
                f"{max_wait_s}"
            )
        weight = next(model.parameters())
        ends = _eos_ids(model, tokenizer) if eos_ids is None else tuple(eos_ids)
        self._max_model_len = max_model_len
        self._vocabulary = _vocabulary_size(model)
        slots = slots_within(memory_share, model, max_model_len, max_slots)
        if slots < max_slots:
            _LOG.warning(
                "%d sequences are decoded at once, not %d: keys and values of more, at %d tokens "
                "each, would take more than the share %g of memory that "
                "rollout.gpu_memory_utilization allows",
                *(slots, max_slots, max_model_len, memory_share),
            )
        self._twin = Twin(model)
        runner = make_runner(self._twin.module, None if dtype is None else torch_dtype(dtype))
        on_gpu = weight.device.type == "cuda"
        graphs = on_gpu if graphs is None else graphs
        cache = SlotCache(weight.device, weight.dtype, max_model_len, slots, fixed=graphs)
        recorder = CudaRecorder if on_gpu else RunAgain
        self._loop = DecodeLoop(
            runner,
            cache,
            StopSets(token_bytes(tokenizer, self._vocabulary), ends),
            Schedule(deterministic, readmit_after, _READMIT_EVERY if graphs else 1),
            SlotTable(slots),
            device=weight.device,
            native=load_native() if native and weight.device.type == "cpu" else None,
            prefill_chunk=prefill_chunk,
            max_wait_s=max_wait_s,
            graphs=DecodeGraphs(runner.forward, cache, weight.device, recorder) if graphs else None,
            free_when_idle=free_when_idle,
        )
        # The thread knows the loop, not this object: an engine that is dropped or that
        # lives until the interpreter exits stops its thread all the same.
        self._finalizer = weakref.finalize(self, self._loop.close)

    @property
    def max_model_len(self) -> int:
        """Largest prompt plus completion, in tokens."""
        return self._max_model_len

    def open(self, request_ids: Sequence[str]) -> None:
        """Announce sequences that run together, in the order in which rows are laid out."""
        self._loop.post(functools.partial(self._loop.open, tuple(request_ids)))

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> Completion:
        """Sample one completion; ``max_new_tokens`` is clamped to what the context holds."""
        return await self._sample(prompt_ids, params, request_id, None)

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        on_tokens: OnTokens,
    ) -> Completion:
        """The same, watched. What is sampled does not depend on it."""
        return await self._sample(prompt_ids, params, request_id, TokenFeed(on_tokens))

    async def _sample(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        feed: TokenFeed | None,
    ) -> Completion:
        prompt = list(prompt_ids)
        self._check(prompt)
        limit = min(params.max_new_tokens, self._max_model_len - len(prompt))
        reply: Reply[Completion] = Reply()
        request = Request(prompt, params, limit, reply, feed)
        self._loop.post(functools.partial(self._loop.submit, request_id, request))
        try:
            return await reply.future
        except asyncio.CancelledError:
            self._post_quietly(functools.partial(self._loop.cancel, request_id, request))
            raise

    def release(self, request_id: str) -> None:
        """The sequence is over; its slot is free. Unknown ids are ignored."""
        self._post_quietly(functools.partial(self._loop.release, request_id))

    async def load_weights(self, source: Any, version: int, *, keep_cache: bool = False) -> int:
        """Serve ``source``: None or the model itself after an update, another module of the
        same architecture, a :class:`WeightSource` or a mapping of its tensors, or a folder of
        safetensors. Tensors in memory are used as they are, so that nothing is moved.
        """
        if isinstance(source, WeightSource):
            source = dict(source.parameters())
        reply: Reply[None] = Reply()
        binding = functools.partial(self._twin.bind, source)
        self._loop.post(functools.partial(self._loop.load, binding, version, keep_cache, reply))
        await reply.future
        return 0

    async def close(self) -> None:
        """Fail what waits, stop the thread, free the cache. May be called again."""
        await asyncio.to_thread(self._finalizer)

    def stats(self) -> EngineStats:
        """Counters since the engine was built; a consistent enough view while it runs."""
        return self._loop.stats()

    def _check(self, prompt: list[int]) -> None:
        if len(prompt) >= self._max_model_len:
            raise EngineError(
                f"a prompt of {len(prompt)} tokens leaves no room in a context of "
                f"{self._max_model_len}; raise max_model_len or shorten the prompt"
            )
        if not prompt:
            raise EngineError("a prompt needs at least one token")
        if min(prompt) < 0 or max(prompt) >= self._vocabulary:
            raise EngineError(
                f"token ids must lie in 0..{self._vocabulary - 1}; this prompt has "
                f"{min(prompt)}..{max(prompt)}: is the tokenizer that of the model?"
            )

    def _post_quietly(self, command: Any) -> None:
        """Post a command that a closed engine has no use for."""
        try:
            self._loop.post(command)
        except EngineError:
            return


def _vocabulary_size(model: nn.Module) -> int:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


def _eos_ids(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """The end tokens named by the generation config, the model config and the tokenizer."""
    found: list[int] = []
    for holder in (
        getattr(model, "generation_config", None),
        getattr(model, "config", None),
        tokenizer,
    ):
        value = getattr(holder, "eos_token_id", None)
        found += value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return tuple(dict.fromkeys(int(index) for index in found))
