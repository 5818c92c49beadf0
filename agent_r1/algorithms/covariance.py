"""Clip-Cov: no gradient for the tokens that reduce the entropy most.

For a softmax policy the entropy falls in proportion to the covariance of a token's
log-probability and its advantage (Cui et al. 2025, "The entropy mechanism of reinforcement
learning for reasoning language models", arXiv 2505.22617, theorem 1). A few tokens account for
almost all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agent_r1.algorithms.masked import masked_mean, zero_outside
from agent_r1.errors import ConfigError


def covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """``(log pi - mean)(A - mean)`` of each action token [B, T]; 0 outside of the mask."""
    likely, good = (x.detach() - masked_mean(x.detach(), mask) for x in (logprobs, advantages))
    return zero_outside(likely * good, mask)


def clip_cov(
    advantages: Tensor,
    logprobs: Tensor,
    mask: Tensor,
    *,
    ratio: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
) -> Tensor:
    """Clip-Cov (section 4.2): the advantages [B, T] with 0 on some tokens of high covariance.

    A share ``ratio`` of the action tokens, at least one, is drawn at random from those whose
    covariance lies between the bounds; without an advantage they have no gradient, which is what
    the paper's detached tokens have. It is decided once for a whole batch, by the policy before
    the update, so that neither micro-batches nor epochs change it. Equal batches, equal draws.

    Raises:
        ConfigError: the share or the bounds make no sense.
    """
    if not 0 <= ratio <= 1 or not low < high:
        raise ConfigError(f"clip_cov: 0 <= ratio <= 1 and low < high, not {ratio}, {low}, {high}")
    cov = covariance(logprobs, advantages, mask)
    inside = mask.bool() & (cov >= low) & (cov <= high)
    eligible = inside.reshape(-1).nonzero()[:, 0]
    tokens = int(mask.bool().sum())
    draw = torch.Generator().manual_seed(tokens)
    wanted = max(1, math.floor(ratio * tokens))
    order = torch.randperm(len(eligible), generator=draw)[:wanted].to(eligible.device)
    kept = advantages.reshape(-1).clone()
    kept[eligible[order]] = 0.0
    return kept.reshape(advantages.shape)
