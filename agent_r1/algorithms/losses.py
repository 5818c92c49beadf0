"""Losses per token ``[B, T]``. ``aggregate`` makes one number of them.

A policy loss is ``f(inputs: PolicyLossInputs, *, options) -> PolicyLossTerms``. Gradients
flow through ``inputs.logprobs`` alone. Masked positions are replaced before anything is
computed from them, so that inf or NaN there reaches neither a value nor a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_r1.algorithms.masked import masked_mean, zero_outside
from agent_r1.errors import ConfigError

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this magnitude before ``exp`` (e^20 is about 5e8)."""


@dataclass(frozen=True, slots=True)
class PolicyLossInputs:
    """All ``[B, T]``. Only ``logprobs`` carries a gradient."""

    logprobs: Tensor
    """Of the policy being trained."""
    old_logprobs: Tensor
    """Of the policy that the trust region is around."""
    advantages: Tensor
    loss_mask: Tensor
    weights: Tensor | None = None
    """Off-policy correction between engine and trainer, or None for 1."""


@dataclass(frozen=True, slots=True)
class PolicyLossTerms:
    """All ``[B, T]``; everything but ``loss`` is detached and for the logs."""

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    """Bool: the lower bound stopped the gradient (A < 0 and ratio below 1 - low)."""
    clipped_high: Tensor
    """Bool: the upper bound stopped the gradient (A > 0 and ratio above 1 + high)."""
    clipped_dual: Tensor
    """Bool: the dual clip stopped the gradient (A < 0 and ratio above c)."""


def ppo(
    inputs: PolicyLossInputs,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_c: float | None = 3.0,
) -> PolicyLossTerms:
    """Clipped surrogate with bounds of its own on either side, and dual clip.

    ``L = max(-rho A, -clip(rho, 1 - low, 1 + high) A)`` (Schulman et al. 2017, eq. 7; the
    higher upper bound is DAPO's clip-higher, 2025, eq. 10), and for A < 0 at most ``-c A``
    (Ye et al. 2020). ``clip_ratio_c=None`` switches the dual clip off.
    """
    low, high = _bounds(clip_ratio_low, clip_ratio_high)
    if clip_ratio_c is not None and clip_ratio_c <= 1:
        raise ConfigError(f"clip_ratio_c must exceed 1 (or be null), not {clip_ratio_c}")
    logprobs, old, advantages = _sane(inputs)
    ratio = _log_ratio(logprobs, old).exp()
    surrogate = -advantages * ratio
    clipped = -advantages * ratio.clamp(low, high)
    loss = torch.maximum(surrogate, clipped)
    dual = torch.zeros_like(inputs.loss_mask, dtype=torch.bool)
    if clip_ratio_c is not None:
        bound = -advantages * clip_ratio_c
        dual = (advantages < 0) & (loss > bound)
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    return _terms(inputs, loss, ratio, advantages, (low, high), dual)


def gspo(
    inputs: PolicyLossInputs, *, clip_ratio_low: float = 3e-4, clip_ratio_high: float = 4e-4
) -> PolicyLossTerms:
    """Group sequence policy optimisation (Zheng et al. 2025, eqs. 5 to 7 and 14).

    The ratio is the sequence's, length-normalised: ``s = exp(mean_t log rho_t)`` over the
    row's action tokens, in the token form ``sg(s) pi / sg(pi)``, so that all tokens of a
    row are clipped together and each carries the gradient of its own log-probability.
    Use with ``seq-mean-token-mean``. The bounds are far narrower than PPO's.
    """
    low, high = _bounds(clip_ratio_low, clip_ratio_high)
    logprobs, old, advantages = _sane(inputs)
    mean_log_ratio = masked_mean((logprobs - old).detach(), inputs.loss_mask, 1)
    bounded = mean_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)[:, None]
    ratio = (logprobs - logprobs.detach() + bounded).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    dual = torch.zeros_like(inputs.loss_mask, dtype=torch.bool)
    return _terms(inputs, loss, ratio, advantages, (low, high), dual)


def cispo(
    inputs: PolicyLossInputs, *, clip_ratio_low: float = 1.0, clip_ratio_high: float = 0.2
) -> PolicyLossTerms:
    """Clipped importance weight (MiniMax-M1 2025, eqs. 4 and 5).

    ``L = -sg(clip(rho, 1 - low, 1 + high)) A log pi``: no token ever loses its gradient.
    The default has no lower bound, as in the paper.
    """
    low, high = _bounds(clip_ratio_low, clip_ratio_high)
    logprobs, old, advantages = _sane(inputs)
    ratio = _log_ratio(logprobs, old).exp().detach()
    loss = -ratio.clamp(low, high) * advantages * logprobs
    none = torch.zeros_like(inputs.loss_mask, dtype=torch.bool)
    mask = inputs.loss_mask.bool()
    return PolicyLossTerms(
        _weighted(loss, inputs), ratio, mask & (ratio < low), mask & (ratio > high), none
    )


def reinforce(inputs: PolicyLossInputs) -> PolicyLossTerms:
    """Plain policy gradient ``-A log pi`` (Williams 1992), with no trust region."""
    logprobs, old, advantages = _sane(inputs)
    none = torch.zeros_like(inputs.loss_mask, dtype=torch.bool)
    ratio = _log_ratio(logprobs, old).exp().detach()
    return PolicyLossTerms(_weighted(-advantages * logprobs, inputs), ratio, none, none, none)


@dataclass(frozen=True, slots=True)
class ValueLossTerms:
    """Both ``[B, T]``."""

    loss: Tensor
    clipped: Tensor
    """Bool: the clipped branch was the larger one."""


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange_value: float | None = 0.5,
) -> ValueLossTerms:
    """``0.5 max((v - R)^2, (clip(v, v_old +- eps) - R)^2)`` (PPO2; Engstrom et al. 2020).

    All tensors ``[B, T]``; the gradient flows through ``values``. None: no clipping.
    """
    v, old, target = (zero_outside(x, mask) for x in (values, old_values, returns))
    plain = (v - target).square()
    if cliprange_value is None:
        return ValueLossTerms(0.5 * plain, torch.zeros_like(mask, dtype=torch.bool))
    near = v.clamp(old - cliprange_value, old + cliprange_value)
    clipped = (near - target).square()
    return ValueLossTerms(0.5 * torch.maximum(plain, clipped), (clipped > plain).detach())


def with_regularisers(
    loss: Tensor,
    mask: Tensor,
    *,
    kl: Tensor | None = None,
    kl_loss_coef: float = 0.0,
    entropy: Tensor | None = None,
    entropy_coeff: float = 0.0,
) -> Tensor:
    """Policy loss + KL to the reference - entropy bonus, per token ``[B, T]``.

    Entropy is the policy's, in nats, of the distribution that token t was drawn from.
    A term whose tensor is None or whose coefficient is 0 costs nothing.
    """
    if kl is not None and kl_loss_coef != 0.0:
        loss = loss + kl_loss_coef * zero_outside(kl, mask)
    if entropy is not None and entropy_coeff != 0.0:
        loss = loss - entropy_coeff * zero_outside(entropy, mask)
    return loss


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Clip range of the ratio; ``low`` may be 1 or more, which means no lower bound."""
    if low < 0 or high < 0:
        raise ConfigError(f"clip_ratio_low and clip_ratio_high are distances >= 0: {low}, {high}")
    return max(0.0, 1.0 - low), 1.0 + high


def _sane(inputs: PolicyLossInputs) -> tuple[Tensor, Tensor, Tensor]:
    """``(logprobs, old, advantages)`` with zeros at masked positions."""
    mask = inputs.loss_mask
    return (
        zero_outside(inputs.logprobs, mask),
        zero_outside(inputs.old_logprobs.detach(), mask),
        zero_outside(inputs.advantages.detach(), mask),
    )


def _log_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    return (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _weighted(loss: Tensor, inputs: PolicyLossInputs) -> Tensor:
    if inputs.weights is None:
        return loss
    return loss * zero_outside(inputs.weights.detach(), inputs.loss_mask)


def _terms(
    inputs: PolicyLossInputs,
    loss: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    bounds: tuple[float, float],
    dual: Tensor,
) -> PolicyLossTerms:
    ratio = ratio.detach()
    low = (advantages < 0) & (ratio < bounds[0])
    high = (advantages > 0) & (ratio > bounds[1])
    return PolicyLossTerms(_weighted(loss, inputs), ratio, low, high, dual.detach())
