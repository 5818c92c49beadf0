"""Decode steps of fixed shape, recorded once as a CUDA graph and replayed.

A decode step of a large model is about a thousand kernels, each of which takes the host
longer to launch than a small batch takes the card to compute. A graph launches all of them
at once. It is bound to shapes and addresses, so steps are rounded up to a few numbers of
rows and of keys, and rows that only fill up write to the cache's spare slot. Sampling is
part of the graph; what the host gives and takes per step is one small copy each way.

Which shape a step has depends on its rows and positions alone, so what repeats without
graphs repeats with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent_r1.rollout.engines.embedded_attention import (
    HeadPreparation,
    StepTokens,
    masked_attention,
    visible,
)
from agent_r1.rollout.engines.embedded_cache import SlotCache
from agent_r1.rollout.engines.embedded_native import Native
from agent_r1.rollout.engines.embedded_sampler import (
    RowSampling,
    inverse_cdf,
    restricted,
    sample,
    uniforms,
)

_LOG = logging.getLogger(__name__)
_INPUTS = 5
"""Token, position, slot, uniform number and temperature of a row."""

Replay = Callable[[], None]


class Recorder(Protocol):
    """Makes a function replayable. What it read and wrote stays where it was."""

    def __call__(self, function: Callable[[], None]) -> Replay: ...


class CudaRecorder:
    """Records into CUDA graphs that share one memory pool; they never run at the same time."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], None]) -> Replay:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()  # libraries set themselves up at the first call, which cannot be recorded
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
            except BaseException:
                with suppress(RuntimeError):  # what went wrong first says more
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay


class RunAgain:
    """A recorder for devices without graphs: the function itself."""

    def __call__(self, function: Callable[[], None]) -> Replay:
        function()
        return function


@dataclass(slots=True)
class _Recorded:
    """One shape: its inputs and outputs in fixed memory, and how to run it."""

    staging: Tensor  # [5, rows] float64, in page-locked memory where there is a GPU
    inputs: Tensor  # the same on the device
    outputs: Tensor  # [2, rows] float64: token, log-probability
    logits: list[Tensor]  # [rows, V], of the last run
    replay: Replay


class DecodeGraphs:
    """Runs decode steps over the slot cache through recorded shapes."""

    def __init__(
        self,
        forward: Callable[[StepTokens], Tensor],
        cache: SlotCache,
        device: torch.device,
        make_recorder: Callable[[], Recorder],
    ) -> None:
        self._forward = forward
        self._cache = cache
        self._device = device
        self._make_recorder = make_recorder
        self._recorder: Recorder | None = None
        self._generation = cache.generation
        self._known: dict[tuple[int, int], _Recorded] = {}

    def clear(self) -> None:
        """Forget everything recorded: weights or cache have moved."""
        self._known.clear()
        self._recorder = None  # a memory pool cannot be used again once its graphs are gone

    def step(
        self, tokens: NDArray[np.int64], positions: NDArray[np.int64], rows: RowSampling
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Feed ``tokens[N]`` at ``positions[N]`` of slots ``0..N-1``; sample one token each."""
        if self._generation != self._cache.generation:
            self.clear()
            self._generation = self._cache.generation
        count = len(tokens)
        shape = (
            row_bucket(count, self._cache.slots),
            key_bucket(int(positions.max()) + 1, self._cache.length),
        )
        recorded = self._known.get(shape)
        values = self._values(shape[0], tokens, positions, rows)
        if recorded is None:
            recorded = self._known[shape] = self._record(shape, values)
        else:
            recorded.staging.copy_(values)
            recorded.inputs.copy_(recorded.staging, non_blocking=True)
        recorded.replay()
        if restricted(rows).any():  # nucleus and top-k sampling depend on the data's sizes
            return sample(recorded.logits[0][:count], rows)
        found = recorded.outputs.cpu().numpy()[:, :count]
        return found[0].astype(np.int64), found[1].astype(np.float32)

    def _values(
        self,
        size: int,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: RowSampling,
    ) -> Tensor:
        count = len(tokens)
        values = np.zeros((_INPUTS, size))
        values[2] = self._cache.spare
        values[0, :count] = tokens
        values[1, :count] = positions
        values[2, :count] = np.arange(count)
        values[3, :count] = uniforms(rows.seed, rows.position)
        values[4, :count] = rows.temperature
        return torch.from_numpy(values)

    def _record(self, shape: tuple[int, int], values: Tensor) -> _Recorded:
        size, keys = shape
        inputs = values.to(self._device)
        outputs = torch.zeros(2, size, dtype=torch.float64, device=self._device)
        kept: list[Tensor] = []

        def run() -> None:
            batch = _DecodeBatch(self._cache, inputs, keys)
            logits = self._forward(batch)
            token, logprob = _sample(logits, inputs[3], inputs[4])
            outputs[0].copy_(token)
            outputs[1].copy_(logprob)
            kept[:] = [logits]

        if self._recorder is None:
            self._recorder = self._make_recorder()
        replay = self._recorder(run)
        staging = values.pin_memory() if self._device.type == "cuda" else values.clone()
        return _Recorded(staging, inputs, outputs, kept, replay)


def _sample(logits: Tensor, draws: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``[N]`` and their log-probabilities; a temperature of 0 takes the likeliest."""
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature).float()
    logp = (logits.float() / divisor[:, None]).log_softmax(-1)
    tokens = torch.where(greedy, logp.argmax(-1), inverse_cdf(logp.exp(), draws))
    return tokens, logp.gather(-1, tokens[:, None])[:, 0]


class _DecodeBatch:
    """What a runner sees of a recorded step: one token for each row, at its own position."""

    def __init__(self, cache: SlotCache, inputs: Tensor, keys: int) -> None:
        self.rows = inputs.shape[1]
        self.native: Native | None = None
        self._cache = cache
        self._keys = keys
        self.token_ids = inputs[0].long()
        self.positions = inputs[1].long()
        self._slots = inputs[2].long()
        self._masks: dict[tuple[int | None, bool], Tensor] = {}
        self._write: dict[int, Tensor] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prepare: HeadPreparation | None = None,
    ) -> Tensor:
        """Store keys and values ``[N, Hkv, D]``, attend with ``query[N, H, D]``."""
        if prepare is not None:
            query, key = prepare.apply(query, key)
        count, heads, dim = query.shape
        kv_heads = key.shape[1]
        keys, values = self._cache.layer(layer, kv_heads, key.shape[2], value.shape[2])
        index = self._index(kv_heads)
        for cached, new in ((keys, key), (values, value)):
            cached.view(-1, cached.shape[-1]).index_copy_(0, index, new.flatten(0, 1))
        out = masked_attention(
            query.reshape(count, kv_heads, heads // kv_heads, dim),
            keys[:count, :, : self._keys],
            values[:count, :, : self._keys],
            self._mask(window, query.dtype, bias=not softcap),
            scale,
            softcap,
        )
        return out.reshape(count, heads, -1)

    def _mask(self, window: int | None, dtype: torch.dtype, *, bias: bool) -> Tensor:
        """``[N, 1, 1, keys]``: what a row sees, as the number to add where ``bias`` is asked
        for, because attention would make one of it in every layer.
        """
        if (window, bias) not in self._masks:
            seen = visible(self.positions[:, None], self._keys, window)[:, None, None]
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._masks[window, bias] = added.masked_fill_(~seen, -torch.inf) if bias else seen
        return self._masks[window, bias]

    def _index(self, heads: int) -> Tensor:
        """Where each row's heads are stored, in units of ``head_dim``."""
        if heads not in self._write:
            head = torch.arange(heads, device=self._slots.device)
            block = self._slots[:, None] * heads + head
            flat = block * self._cache.length + self.positions[:, None]
            self._write[heads] = flat.flatten()
        return self._write[heads]


def row_bucket(count: int, limit: int) -> int:
    """Rows of the recorded shape: powers of two to 8, then four or more steps to each double."""
    if count <= 8:
        size = 1 << (count - 1).bit_length()
    else:
        step = max(4, 1 << ((count - 1).bit_length() - 3))
        size = -(-count // step) * step
    return min(size, limit)


def key_bucket(length: int, limit: int) -> int:
    """Keys of the recorded shape: from 128 on, two steps to each double."""
    if length <= 128:
        return min(128, limit)
    step = 1 << ((length - 1).bit_length() - 2)
    return min(-(-length // step) * step, limit)
