"""Rows of different length as one stream of tokens, without padding and without repeats.

Linear layers see ``[1, N]`` tokens. Two savings are exact: padding is never computed, and
a prefix that several rows share (the prompt of a group's siblings) is computed once,
because in a causal model the state of a token depends on the tokens before it and on
nothing else. Only attention needs whole rows; it gathers them through the layout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

MIN_SHARED_FRACTION = 0.1
"""Prefixes are shared when that saves at least this part of the tokens: attention then
gathers its rows instead of slicing them, which costs more than a small saving brings."""

BUCKET_SLACK = 1.25
"""Rows of one attention call differ in length by at most this factor."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length that attend in one call, padded to ``width``.

    ``start`` is where the first of them begins in the stream of whole rows.
    """

    lengths: tuple[int, ...]
    start: int

    @property
    def width(self) -> int:
        return self.lengths[0]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def uniform(self) -> bool:
        """All rows are equally long, so that no padding and no copy is needed."""
        return self.lengths[0] == self.lengths[-1]


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where every token of every row is in the packed stream.

    Rows are in an order of their own (``row_order``, longest first) so that each bucket
    is a contiguous piece of the stream of whole rows, of ``M`` tokens. The packed stream
    has ``N <= M`` tokens; ``N == M`` and ``expand is None`` when nothing is shared.
    """

    token_ids: Tensor  # [1, N] int64
    position_ids: Tensor  # [1, N] int64, restarting at 0 with every row
    node: Tensor  # [B, T] int64, index into the packed stream; -1 on padding
    buckets: tuple[Bucket, ...]
    cu_lengths: Tensor  # [R + 1] int32, offsets of the R non-empty rows in the whole stream
    expand: Tensor | None  # [M] int64, packed index of every token of the whole stream
    reduce: Tensor | None  # [N] int64, one position in the whole stream of every packed token

    @property
    def max_length(self) -> int:
        return self.buckets[0].width if self.buckets else 0

    def to(self, device: torch.device) -> PackedLayout:
        """The same layout on another device."""
        if self.token_ids.device == device:
            return self
        moved: dict[str, Any] = {
            field.name: sent(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, without waiting for what that is computing."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(token_ids: Tensor, lengths: Tensor, *, share_prefixes: bool = True) -> PackedLayout:
    """Lay out the rows of ``token_ids[B, T]``; what lies beyond ``lengths[B]`` is ignored."""
    batch, width = token_ids.shape
    device = token_ids.device
    real = torch.arange(width, device=device) < lengths[:, None]  # [B, T]
    row_order = torch.argsort(lengths, descending=True, stable=True)
    row_order = row_order[lengths[row_order] > 0]
    whole = torch.full((batch, width), -1, device=device)  # [B, T] position in the whole stream
    ordered_real = real[row_order]
    total = int(ordered_real.sum())
    ordered = torch.full(ordered_real.shape, -1, device=device)
    ordered[ordered_real] = torch.arange(total, device=device)
    whole[row_order] = ordered
    sizes = lengths[row_order]
    cu_lengths = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)
    node, expand, reduce = whole, None, None
    if share_prefixes and batch > 1:
        owner = _prefix_owners(token_ids, real)  # [B, T] flat index of the token that stands for it
        distinct, inverse = torch.unique(whole.flatten()[owner[real]], return_inverse=True)
        if total - len(distinct) >= MIN_SHARED_FRACTION * total:
            node = torch.full_like(whole, -1)
            node[real] = inverse
            expand, reduce = node[row_order][ordered_real], distinct
    packed_ids, positions = token_ids[row_order][ordered_real], _positions(ordered_real)
    if reduce is not None:
        packed_ids, positions = packed_ids[reduce], positions[reduce]
    buckets = _buckets(sizes.tolist())
    return PackedLayout(
        packed_ids[None], positions[None], node, buckets, cu_lengths, expand, reduce
    )


def _positions(real: Tensor) -> Tensor:
    return torch.arange(real.shape[1], device=real.device).expand(real.shape)[real]


def _prefix_owners(token_ids: Tensor, real: Tensor) -> Tensor:
    """For each token the flat ``[B * T]`` index of the first equal token with an equal past.

    Rows are sorted lexicographically; the longest prefix that a row shares with any
    earlier row is the one it shares with its predecessor, so one pass builds the trie.
    """
    batch, width = token_ids.shape
    keys = torch.where(real, token_ids, -1)
    order = sorted(range(batch), key=keys.tolist().__getitem__)
    owner = torch.arange(batch * width, device=token_ids.device).view(batch, width).clone()
    ordered = keys[order]
    same = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    shared = same.long().cumprod(1).sum(1).tolist()
    for previous, row, length in zip(order[:-1], order[1:], shared, strict=True):
        owner[row, :length] = owner[previous, :length]
    return owner


def _buckets(sizes: list[int]) -> tuple[Bucket, ...]:
    """Cut lengths, longest first, where one would be padded by more than the slack."""
    buckets: list[Bucket] = []
    first = start = 0
    for i in range(1, len(sizes) + 1):
        if i == len(sizes) or sizes[i] * BUCKET_SLACK < sizes[first]:
            buckets.append(Bucket(tuple(sizes[first:i]), start))
            start += sum(sizes[first:i])
            first = i
    return tuple(buckets)
