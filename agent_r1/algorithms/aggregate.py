"""Per-token losses ``[B, T]`` to one number, by denominators of the whole mini-batch.

Every mode is a weighted sum of tokens whose weights depend on the row only. The weights
``[B]`` are computed once, over the global mini-batch, and stay with the rows in
whatever micro-batch or rank these are. The losses of the parts then add up to
the loss of the whole by construction; a mean of micro-batch means does not when they
differ in length. (A data-parallel reduction that *averages* gradients over R ranks must
multiply by R; the worker does that.)
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from agent_r1.algorithms.masked import masked_sum, zero_outside
from agent_r1.errors import ConfigError


class Aggregation(StrEnum):
    """How tokens are weighed. "Sequence" means trajectory: all of its segments together."""

    TOKEN_MEAN = "token-mean"
    """Every token of the batch weighs the same (DAPO)."""
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"
    """Every trajectory weighs the same (GRPO): 1 / (trajectories x its tokens)."""
    SEQ_MEAN_TOKEN_SUM = "seq-mean-token-sum"
    """1 / trajectories: long ones weigh more."""
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"
    """1 / (trajectories x constant): unbiased by length, with a sane scale (Dr. GRPO)."""


def loss_weights(
    mask: Tensor,
    mode: str = Aggregation.TOKEN_MEAN,
    *,
    trajectory_id: Tensor | None = None,
    divisor: float | None = None,
) -> Tensor:
    """Weight ``[B]`` of each row's tokens; all zero where nothing is trained on.

    Args:
        mask: [B, T] loss mask of the *global* mini-batch.
        mode: a value of :class:`Aggregation`.
        trajectory_id: [B]; None when every row is a trajectory of its own.
        divisor: the constant of ``seq-mean-token-sum-norm``, e.g. the maximal response
            length. Never the padded width, which changes from batch to batch.

    Raises:
        ConfigError: unknown mode, or its constant is missing or not positive.
    """
    tokens = mask.bool().sum(1).to(torch.float64)
    owner = torch.arange(len(mask), device=mask.device)
    if trajectory_id is not None:
        owner = torch.unique(trajectory_id, return_inverse=True)[1]
    per_owner = torch.zeros(len(mask), dtype=torch.float64, device=mask.device)
    per_owner = per_owner.scatter_add(0, owner, tokens)
    sequences = (per_owner > 0).sum().clamp(min=1).to(torch.float64)
    own_tokens = per_owner[owner].clamp(min=1)
    scale = _scale(mode, tokens.sum().clamp(min=1), sequences, own_tokens, divisor)
    return torch.where(tokens > 0, 1.0 / scale, torch.zeros_like(tokens))


def _scale(
    mode: str, tokens: Tensor, sequences: Tensor, own_tokens: Tensor, divisor: float | None
) -> Tensor:
    if mode == Aggregation.TOKEN_MEAN:
        return tokens.expand_as(own_tokens)
    if mode == Aggregation.SEQ_MEAN_TOKEN_MEAN:
        return sequences * own_tokens
    if mode == Aggregation.SEQ_MEAN_TOKEN_SUM:
        return sequences.expand_as(own_tokens)
    if mode == Aggregation.SEQ_MEAN_TOKEN_SUM_NORM:
        if divisor is None or divisor <= 0:
            raise ConfigError(
                f"{mode} divides by a positive constant, not {divisor}; "
                "set loss_scale_factor, usually to the maximal response length"
            )
        return (sequences * divisor).expand_as(own_tokens)
    known = ", ".join(m.value for m in Aggregation)
    raise ConfigError(f"no aggregation is called {mode!r}; known: {known}")


def aggregate(per_token: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """The rows' share of the mini-batch loss: ``sum_b w_b sum_t loss[b, t]``.

    Args:
        per_token: [B, T]; masked elements are never read.
        mask: [B, T] of these rows.
        weights: [B] of these rows, from :func:`loss_weights` of the whole mini-batch.
    """
    rows = zero_outside(per_token, mask).sum(1)
    return masked_sum(rows * weights.to(rows.dtype), weights > 0)
