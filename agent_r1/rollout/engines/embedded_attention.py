"""Attention of one engine step over the slot cache.

A step's tokens lie flat: first one token for each decoding row, row ``i`` in slot ``i``,
then the chunks of prompts that are being computed, one after another. Every projection of
the model runs on all of them at once; only attention tells the two kinds apart.

Where compiled kernels are at hand, they serve rows and short chunks alike, token by
token; long chunks are matrix products, which torch does best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from agent_r1.models.attention import ragged_attention
from agent_r1.models.fused import compile_once, prepare_heads
from agent_r1.rollout.engines.embedded_cache import SlotCache
from agent_r1.rollout.engines.embedded_native import Native

HALF = (torch.bfloat16, torch.float16)
_BUCKET = 16
_SHORT_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive prompt tokens of one sequence, at positions ``start, start + 1, …``."""

    slot: int
    start: int
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class _ChunkGroup:
    """Chunks of similar length, padded to ``[M, C]``."""

    slots: Tensor  # [M]
    gather: Tensor  # [M, C] flat token index; padding repeats the chunk's first token
    position: Tensor  # [M, C]
    flat: Tensor  # [sum of lengths] flat index of the real tokens, chunk by chunk
    inside: Tensor  # [sum of lengths] their index in the flattened [M, C]
    key_length: int


@dataclass(frozen=True, slots=True)
class HeadPreparation:
    """What happens to queries and keys before they meet."""

    norms: tuple[Tensor, Tensor, float] | None
    """Weights ``[D]`` of the root-mean-square norms of queries and keys, and their epsilon."""
    cos: Tensor  # [T, D]
    sin: Tensor  # [T, D]

    def apply(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and rotate ``[T, H, D]``."""
        if query.is_cuda:
            q_weight, k_weight, eps = self.norms or (None, None, 0.0)
            both: tuple[Tensor, Tensor] = compile_once(prepare_heads)(
                query, key, self.cos, self.sin, q_weight, k_weight, eps
            )
            return both
        if self.norms is not None:
            q_weight, k_weight, eps = self.norms
            query = F.rms_norm(query, q_weight.shape, q_weight, eps)
            key = F.rms_norm(key, k_weight.shape, k_weight, eps)
        # Rolling by half a head swaps its halves; the sign of the first goes into the sine.
        half = self.sin.shape[-1] // 2
        turn = torch.cat([-self.sin[:, :half], self.sin[:, half:]], -1)[:, None]
        cos = self.cos[:, None]
        return (
            torch.addcmul(query * cos, query.roll(half, -1), turn),
            torch.addcmul(key * cos, key.roll(half, -1), turn),
        )


class StepTokens(Protocol):
    """What a runner sees of a step: its tokens, and attention over the cache for each layer."""

    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    rows: int
    """Decoding rows; their tokens come first."""
    native: Native | None

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
        """Store ``key`` and ``value`` ``[T, Hkv, D]``, attend with ``query[T, H, D]``."""


class StepBatch:
    """The flat tokens of one step and everything attention derives from their layout."""

    def __init__(
        self,
        cache: SlotCache,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        chunks: Sequence[Chunk],
        device: torch.device,
        native: Native | None = None,
    ) -> None:
        self.rows = len(tokens)
        self.native = native
        self._cache = cache
        self._device = device
        # Short chunks first: kernels take the rows and what follows them directly.
        chunks = sorted(chunks, key=lambda c: len(c.token_ids) > _SHORT_CHUNK)
        spans = [np.arange(c.start, c.start + len(c.token_ids)) for c in chunks]
        slots = [np.arange(self.rows), *(np.full(len(c.token_ids), c.slot) for c in chunks)]
        self._positions = np.concatenate([positions, *spans])
        self._slots = np.concatenate(slots)
        self.token_ids = self._tensor(
            np.concatenate([tokens, *(np.asarray(c.token_ids) for c in chunks)])
        )  # [T]
        self.positions = self._tensor(self._positions)  # [T]
        self._key_length = self._bucket(int(positions.max()) + 1 if self.rows else 0)
        short = [c for c in chunks if len(c.token_ids) <= _SHORT_CHUNK]
        self._direct = self.rows + sum(len(c.token_ids) for c in short)
        self._long_grouped: list[_ChunkGroup] | None = None
        self._short = short
        self._short_grouped: list[_ChunkGroup] | None = None
        self._chunks = chunks
        self._ragged_rows: tuple[Tensor, Tensor, Tensor, Tensor, int, int] | None = None
        self._slot_index = self._tensor(self._slots)  # [T]
        self._write_index: dict[int, Tensor] = {}
        self._bias: dict[tuple[int, int | None], Tensor] = {}
        self._masks: dict[tuple[_ChunkGroup, int | None], Tensor] = {}

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
        """Store ``key``/``value`` ``[T, Hkv, D]`` and attend with ``query[T, H, D]``.

        Returns ``[T, H, D]``. A token sees the positions up to its own, only the last
        ``window`` of them where a window is given. ``query`` may be overwritten.
        """
        keys, values = self._cache.layer(layer, key.shape[1], key.shape[2], value.shape[2])
        if self.native is not None and not softcap and self.native.fits(query, value):
            query = query.contiguous()
            out = self.native.attend(
                query,
                key.contiguous(),
                value.contiguous(),
                keys,
                values,
                self._slot_index,
                self.positions,
                self._direct,
                scale,
                window,
                prepare.norms if prepare else None,
                (prepare.cos, prepare.sin) if prepare else None,
            )
            groups = self._long_groups()
        else:
            if prepare is not None:
                query, key = prepare.apply(query, key)
            self._store(keys, key)
            self._store(values, value)
            if not self._chunks:
                return self._decode(query, keys, values, scale, window, softcap)
            if not self.rows and not softcap and query.is_cuda and query.dtype in HALF:
                return self._ragged(query, keys, values, scale, window)
            out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
            if self.rows:
                part = self._decode(query[: self.rows], keys, values, scale, window, softcap)
                out[: self.rows] = part
            groups = [*self._short_groups(), *self._long_groups()]
        for group in groups:
            self._attend_group(group, query, keys, values, out, scale, window, softcap)
        return out

    def _ragged(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention of all chunks in one call on a GPU, their keys gathered row by row."""
        heads, length = keys.shape[1], self._cache.length
        if self._ragged_rows is None:
            self._ragged_rows = self._ragged_layout()
        slots, positions, cu_q, cu_k, max_q, max_k = self._ragged_rows
        head = torch.arange(heads, device=self._device)
        index = ((slots[:, None] * heads + head) * length + positions[:, None]).flatten()
        k, v = (
            cached.view(-1, cached.shape[-1]).index_select(0, index).view(len(slots), heads, -1)
            for cached in (keys, values)
        )
        return ragged_attention(query, k, v, cu_q, cu_k, max_q, max_k, scale, window)

    def _ragged_layout(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        """Slot and position of every key, one chunk after another; bounds of queries and keys."""
        chunks = self._chunks
        ends = [c.start + len(c.token_ids) for c in chunks]
        sizes = [len(c.token_ids) for c in chunks]
        slots = np.concatenate([np.full(end, c.slot) for c, end in zip(chunks, ends, strict=True)])
        positions = np.concatenate([np.arange(end) for end in ends])
        cu_q, cu_k = (self._tensor(np.cumsum([0, *part])).int() for part in (sizes, ends))
        return self._tensor(slots), self._tensor(positions), cu_q, cu_k, max(sizes), max(ends)

    def _store(self, cached: Tensor, new: Tensor) -> None:
        index = self._index(new.shape[1])
        cached.view(-1, cached.shape[-1]).index_copy_(0, index, new.reshape(-1, new.shape[-1]))

    def _attend_group(
        self,
        group: _ChunkGroup,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        """Attention of padded chunks, written to their places in ``out``."""
        padded = query[group.gather].transpose(1, 2)
        rows = keys[:, :, : group.key_length].index_select(0, group.slots)
        cols = values[:, :, : group.key_length].index_select(0, group.slots)
        mask = self._mask(group, window)
        part = masked_attention(padded, rows, cols, mask, scale, softcap)
        flat = part.transpose(1, 2).flatten(0, 1)
        out.index_copy_(0, group.flat, flat.index_select(0, group.inside))

    def _decode(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """One query per row. The queries that share a key head form one small matrix."""
        count, heads, dim = query.shape
        kv_heads, length = keys.shape[1], self._key_length
        if query.device.type == "cpu" and query.dtype == torch.float32 and not softcap:
            grouped = query.reshape(count * kv_heads, heads // kv_heads, dim)
            flat_keys = keys[:count].flatten(0, 1)[:, :length]
            flat_values = values[:count].flatten(0, 1)[:, :length]
            bias = self._decode_bias(kv_heads, window)
            scores = torch.baddbmm(bias, grouped, flat_keys.transpose(1, 2), alpha=scale)
            return torch.bmm(scores.softmax(-1), flat_values).view(count, heads, -1)
        grouped = query.reshape(count, kv_heads, heads // kv_heads, dim)
        mask = self._decode_mask(window)[:, None, None]
        rows, cols = keys[:count, :, :length], values[:count, :, :length]
        out = masked_attention(grouped, rows, cols, mask, scale, softcap)
        return out.reshape(count, heads, -1)

    def _decode_mask(self, window: int | None) -> Tensor:
        """``[rows, keys]``: True where a row may look."""
        return visible(self.positions[: self.rows, None], self._key_length, window)

    def _decode_bias(self, kv_heads: int, window: int | None) -> Tensor:
        """``[rows * kv_heads, 1, keys]``: 0 where a row may look, minus infinity elsewhere."""
        known = self._bias.get((kv_heads, window))
        if known is None:
            mask = self._decode_mask(window)
            bias = torch.zeros(mask.shape, device=self._device).masked_fill_(~mask, -torch.inf)
            known = bias.repeat_interleave(kv_heads, 0)[:, None]
            self._bias[kv_heads, window] = known
        return known

    def _mask(self, group: _ChunkGroup, window: int | None) -> Tensor:
        """``[M, 1, C, keys]``."""
        known = self._masks.get((group, window))
        if known is None:
            known = visible(group.position[..., None], group.key_length, window)[:, None]
            self._masks[group, window] = known
        return known

    def _index(self, heads: int) -> Tensor:
        """``[T * heads]``: where each token's heads are stored, in units of ``head_dim``."""
        known = self._write_index.get(heads)
        if known is None:
            blocks = self._slots[:, None] * heads + np.arange(heads)
            flat = blocks * self._cache.length + self._positions[:, None]
            known = self._write_index[heads] = self._tensor(flat.reshape(-1))
        return known

    def _long_groups(self) -> list[_ChunkGroup]:
        if self._long_grouped is None:
            self._long_grouped = self._group(self._chunks[len(self._short) :], self._direct)
        return self._long_grouped

    def _short_groups(self) -> list[_ChunkGroup]:
        if self._short_grouped is None:
            self._short_grouped = self._group(self._short, self.rows)
        return self._short_grouped

    def _group(self, chunks: Sequence[Chunk], at: int) -> list[_ChunkGroup]:
        """Put chunks of like length (in bits) together; the first of them lies at ``at``."""
        classes: dict[int, list[tuple[int, Chunk]]] = {}
        for chunk in chunks:
            classes.setdefault(len(chunk.token_ids).bit_length(), []).append((at, chunk))
            at += len(chunk.token_ids)
        return [self._pad(members) for members in classes.values()]

    def _pad(self, members: list[tuple[int, Chunk]]) -> _ChunkGroup:
        lengths = np.array([len(chunk.token_ids) for _, chunk in members])
        starts = np.array([at for at, _ in members])
        column = np.arange(lengths.max())
        real = column < lengths[:, None]
        gather = starts[:, None] + np.where(real, column, 0)
        longest = max(chunk.start + len(chunk.token_ids) for _, chunk in members)
        return _ChunkGroup(
            slots=self._tensor(np.array([chunk.slot for _, chunk in members])),
            gather=self._tensor(gather),
            position=self._tensor(self._positions[gather]),
            flat=self._tensor(gather[real]),
            inside=self._tensor(np.flatnonzero(real)),
            key_length=self._bucket(longest),
        )

    def _bucket(self, length: int) -> int:
        """Key lengths come in few sizes, so that kernels and allocations repeat."""
        return min(-(-length // _BUCKET) * _BUCKET, self._cache.length)

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)


def visible(position: Tensor, length: int, window: int | None) -> Tensor:
    """Which of ``length`` keys each position sees; adds a last axis."""
    key = torch.arange(length, device=position.device)
    seen = key <= position
    if window is not None:
        seen &= key > position - window
    return seen


def masked_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """``query[M, H, C, D]`` over ``keys`` and ``values`` ``[M, Hkv, L, D]``."""
    if not softcap:
        grouped = query.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    repeat = query.shape[1] // keys.shape[1]
    scores = query @ keys.repeat_interleave(repeat, 1).transpose(-1, -2) * scale
    scores = (torch.tanh(scores / softcap) * softcap).float()
    probs = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(query.dtype)
    return probs @ values.repeat_interleave(repeat, 1)
