"""Correction for an engine that samples from a slightly different policy than we train.

The engine computes in other kernels, another precision or with older weights, so its
log-probabilities differ from the trainer's. ``w = pi_old / pi_rollout`` puts the sampled
tokens back on ``pi_old``. Weights are detached, computed once per global batch and 0
outside of the mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agent_r1.algorithms.masked import zero_outside
from agent_r1.errors import ConfigError

MAX_LOG_RATIO = 20.0


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    level: str = "token",
    mode: str = "truncate",
    upper: float = 2.0,
    lower: float = 0.5,
    trajectory_id: Tensor | None = None,
) -> Tensor:
    """Weights ``[B, T]`` for the policy loss.

    Args:
        old_logprobs: [B, T] of the trainer.
        rollout_logprobs: [B, T] of the engine.
        mask: [B, T].
        level: ``token`` (low variance, some bias), ``sequence`` (product over the
            trajectory: unbiased, high variance) or ``geometric`` (its length-th root).
        mode: ``truncate``: ``min(w, upper)`` (Ionides 2008; TIS, Yao et al. 2025).
            ``mask``: w where ``lower <= w <= upper``, else 0 (IcePop, 2025).
        upper: largest weight.
        lower: smallest weight that is kept; used by ``mask`` only.
        trajectory_id: [B]; None when every row is a trajectory of its own.

    Raises:
        ConfigError: unknown level or mode, or bounds that do not enclose 1.
    """
    _check_bounds(lower, upper)
    log_weight = _log_weight(old_logprobs, rollout_logprobs, mask, level, trajectory_id)
    weight = log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if mode == "truncate":
        weight = weight.clamp(max=upper)
    elif mode == "mask":
        inside = (weight >= lower) & (weight <= upper)
        weight = torch.where(inside, weight, torch.zeros_like(weight))
    else:
        raise ConfigError(f"importance weights are of mode 'truncate' or 'mask', not {mode!r}")
    return zero_outside(weight, mask)


def trusted_mask(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    *,
    level: str = "geometric",
    lower: float = 0.99,
    upper: float = 1.01,
    trajectory_id: Tensor | None = None,
) -> Tensor:
    """The loss mask ``[B, T]`` without tokens or trajectories too far off-policy.

    Keeps what has ``lower <= w <= upper`` (masked importance sampling). Unlike a zero
    weight, a token that is dropped here also leaves the loss denominators.
    """
    _check_bounds(lower, upper)
    log_weight = _log_weight(old_logprobs, rollout_logprobs, mask, level, trajectory_id)
    low = math.log(lower) if lower > 0 else -math.inf
    return mask.bool() & (log_weight >= low) & (log_weight <= math.log(upper))


def _check_bounds(lower: float, upper: float) -> None:
    if not 0 <= lower <= 1 <= upper:
        raise ConfigError(f"weights are bounded by 0 <= lower <= 1 <= upper, not {lower}, {upper}")


def _log_weight(
    old: Tensor, rollout: Tensor, mask: Tensor, level: str, trajectory_id: Tensor | None
) -> Tensor:
    """[B, T] ``log w`` of the token or of the trajectory it belongs to."""
    d = zero_outside(old.detach(), mask) - zero_outside(rollout.detach(), mask)
    if level == "token":
        return d
    if level not in ("sequence", "geometric"):
        raise ConfigError(f"level is 'token', 'sequence' or 'geometric', not {level!r}")
    owner = torch.arange(len(d), device=d.device)
    if trajectory_id is not None:
        owner = torch.unique(trajectory_id, return_inverse=True)[1]
    zeros = torch.zeros(len(d), dtype=d.dtype, device=d.device)
    total = zeros.scatter_add(0, owner, d.sum(1))[owner]
    if level == "geometric":
        tokens = mask.bool().sum(1).to(d.dtype)
        total = total / zeros.scatter_add(0, owner, tokens)[owner].clamp(min=1)
    return total[:, None].expand_as(d)
