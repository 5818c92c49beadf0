"""Causal attention over packed rows, as an attention function of transformers.

A model whose ``config._attn_implementation`` is :data:`PACKED` behaves like ``sdpa`` in
every ordinary call (also with a KV cache or a padding mask) and attends row by row when
a :class:`PackedLayout` is passed as the keyword ``packing``. No ``T x T`` mask is ever
built: right-padded causal rows need none, and a sliding window is done in query blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent_r1.errors import ModelError
from agent_r1.models.packing import Bucket, PackedLayout

PACKED = "agent_r1_packed"
"""Name under which the attention function is registered with transformers."""

QUERY_BLOCK = 256
"""Queries per block where scores have to be formed (sliding window, soft-capping)."""


@cache
def register_attention() -> str:
    """Make :data:`PACKED` known to transformers and return that name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, sdpa_mask)
    return PACKED


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,  # [1, H, N, D]
    key: Tensor,  # [1, H_kv, N, D]
    value: Tensor,  # [1, H_kv, N, D_v]
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packing: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers prescribes; returns ``[1, N, H, D_v]``.

    A list passed as the keyword ``probe`` collects the sliding window of every call.
    Raises :class:`ModelError` for what this attention does not compute (attention
    sinks, dropout inside attention), instead of computing something else.
    """
    if packing is None and softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return result
    unsupported = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported or dropout:
        what = ", ".join(unsupported) or "attention dropout"
        raise ModelError(
            f"packed attention does not support {what}; train another model, or set "
            "attention_dropout to 0 in its config.json if that is what it says"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packing is None:
        return _soft_capped(query, key, value, attention_mask, scale, softcap), None
    if "probe" in kwargs:
        kwargs["probe"].append(sliding_window)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [N, H, D]
    if packing.expand is not None:
        rows = [tensor.index_select(0, packing.expand) for tensor in rows]
    window = None if not sliding_window or sliding_window >= packing.max_length else sliding_window
    if rows[0].is_cuda and softcap is None and rows[0].dtype in (torch.bfloat16, torch.float16):
        cu, longest = packing.cu_lengths, packing.max_length
        q, k, v = rows
        output = ragged_attention(q, k, v, cu, cu, longest, longest, scale, window)
    else:
        pieces = [_bucket_attention(rows, b, scale, window, softcap) for b in packing.buckets]
        output = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if packing.reduce is not None:
        output = output.index_select(0, packing.reduce)
    return output[None], None


def _soft_capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """An ordinary, unpacked call of a soft-capping model (Gemma 2), which ``sdpa`` refuses."""
    assert softcap is not None
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = softcap * torch.tanh(_exact(q @ k.transpose(-1, -2)) * scale / softcap)
    if mask is None and q.shape[2] > 1:
        past = k.shape[2] - q.shape[2]
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(past)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def _exact(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Causal flash attention over ragged rows on a GPU, in bfloat16 or float16.

    ``q[M, H, D]`` and ``k``, ``v`` ``[N, H_kv, D]`` hold the rows one after another, row ``i``
    at ``cu[i] .. cu[i + 1]`` (int32). A row's queries are the last of its keys. ``window``
    counts the keys that a query sees, itself included.
    """
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if window is None else window - 1
    # Torch before 2.12 has no such parameter: its kernel tells from the shapes.
    grouped: dict[str, Any] = (
        {"enable_gqa": q.shape[1] != k.shape[1]} if _takes_gqa(varlen_attn) else {}
    )
    result = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scale,
        window_size=(left, 0),
        **grouped,
    )
    assert isinstance(result, Tensor)  # a tuple only when auxiliary outputs are asked for
    return result


@cache
def _takes_gqa(function: Callable[..., Any]) -> bool:
    return "enable_gqa" in inspect.signature(function).parameters


def _bucket_attention(
    rows: list[Tensor], bucket: Bucket, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Attention of one bucket: slice it out, pad if its rows differ, attend, drop the padding.

    ``[M, H, D] -> [tokens of the bucket, H, D]``
    """
    piece = [tensor[bucket.start : bucket.start + bucket.tokens] for tensor in rows]
    count, width = len(bucket.lengths), bucket.width
    real = None
    if not bucket.uniform:
        lengths = torch.tensor(bucket.lengths, device=piece[0].device)
        real = torch.arange(width, device=lengths.device) < lengths[:, None]  # [b, T]
        fill = (real.flatten().cumsum(0) - 1).clamp(min=0)  # padding repeats a real token
        piece = [tensor.index_select(0, fill) for tensor in piece]
    q, k, v = (t.view(count, width, t.shape[1], t.shape[2]).transpose(1, 2) for t in piece)
    if (window is not None and window < width) or softcap is not None:
        output = _blocked(q, k, v, scale, window, softcap)
    else:
        gqa = q.shape[1] != k.shape[1]
        output = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=gqa
        )
    output = output.transpose(1, 2).reshape(count * width, q.shape[1], v.shape[-1])
    return output if real is None else output[real.flatten()]


def _blocked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention with explicit scores, a block of queries and its reachable keys at a time.

    ``window`` counts the keys that a query sees, itself included.
    """
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    outputs = []
    for start in range(0, q.shape[2], QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, q.shape[2])
        first = 0 if window is None else max(0, start - window + 1)
        scores = _exact(q[:, :, start:stop] @ k[:, :, first:stop].transpose(-1, -2)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        queries = torch.arange(start, stop, device=q.device)[:, None]
        keys = torch.arange(first, stop, device=q.device)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype)
        outputs.append(weights @ v[:, :, first:stop])
    return torch.cat(outputs, dim=2)
