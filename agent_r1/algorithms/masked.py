"""Reductions that never read a masked element, so that NaN or inf there cannot leak.

``mask`` is boolean (or 0/1) and of the shape of the values unless stated. An empty mask
gives 0, never NaN. Multiplying by the mask would not do: ``nan * 0`` is ``nan``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is set and 0 elsewhere; no gradient flows elsewhere."""
    return torch.where(mask.bool(), values, values.new_zeros(()))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over the mask."""
    kept = zero_outside(values, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the mask; 0 where the mask is empty."""
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return masked_sum(values, mask, dim) / count.clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance (ddof = 1) over the mask; 0 with fewer than two elements."""
    centred = values - masked_mean(values, mask)
    count = mask.bool().sum()
    return masked_sum(centred.square(), mask) / (count - 1).clamp(min=1)


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Zero mean and unit variance over the mask, 0 outside of it.

    Fewer than two elements have no spread to speak of and give 0.
    """
    scale = torch.rsqrt(masked_var(values, mask) + epsilon)
    return zero_outside((values - masked_mean(values, mask)) * scale, mask)
