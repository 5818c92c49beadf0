"""Numbers for the logs that add up over micro-batches and ranks.

A mean of micro-batch means is as wrong in a log as in a loss, so these records hold sums
and extremes; ``+`` merges them and ``summary`` divides once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_r1.algorithms.losses import PolicyLossInputs, PolicyLossTerms, ValueLossTerms
from agent_r1.algorithms.masked import masked_mean, masked_sum, zero_outside

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class PolicyStats:
    """Sums over the action tokens of some rows. ``PolicyStats()`` is the empty one."""

    tokens: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    clipped_dual: float = 0.0
    k1: float = 0.0
    k3: float = 0.0
    ratio: float = 0.0
    ratio_max: float = 0.0
    ratio_min: float = float("inf")

    def __add__(self, other: PolicyStats) -> PolicyStats:
        return PolicyStats(
            self.tokens + other.tokens,
            self.clipped_low + other.clipped_low,
            self.clipped_high + other.clipped_high,
            self.clipped_dual + other.clipped_dual,
            self.k1 + other.k1,
            self.k3 + other.k3,
            self.ratio + other.ratio,
            max(self.ratio_max, other.ratio_max),
            min(self.ratio_min, other.ratio_min),
        )

    def summary(self) -> dict[str, float]:
        """Metric name to value; empty when no token was seen."""
        if self.tokens == 0:
            return {}
        return {
            "pg_clipfrac": (self.clipped_low + self.clipped_high) / self.tokens,
            "pg_clipfrac_low": self.clipped_low / self.tokens,
            "pg_clipfrac_high": self.clipped_high / self.tokens,
            "pg_clipfrac_dual": self.clipped_dual / self.tokens,
            "ppo_kl": self.k1 / self.tokens,
            "ppo_kl_k3": self.k3 / self.tokens,
            "ratio_mean": self.ratio / self.tokens,
            "ratio_max": self.ratio_max,
            "ratio_min": self.ratio_min,
        }


def policy_stats(inputs: PolicyLossInputs, terms: PolicyLossTerms) -> PolicyStats:
    """Clip fractions, ratios and KL(old || new) of one micro-batch."""
    mask = inputs.loss_mask.bool()
    if not bool(mask.any()):
        return PolicyStats()
    d = zero_outside(inputs.logprobs.detach(), mask) - zero_outside(inputs.old_logprobs, mask)
    d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    flags = (terms.clipped_low, terms.clipped_high, terms.clipped_dual)
    ratio = terms.ratio[mask].double()
    sums = [mask.sum(), *((flag & mask).sum() for flag in flags)]
    sums += [masked_sum(-d.double(), mask), masked_sum(torch.expm1(d.double()) - d, mask)]
    return PolicyStats(*_floats([*sums, ratio.sum(), ratio.max(), ratio.min()]))


@dataclass(frozen=True, slots=True)
class MismatchStats:
    """Engine against trainer on the same tokens; sums. ``MismatchStats()`` is empty."""

    tokens: float = 0.0
    absolute: float = 0.0
    k1: float = 0.0
    k3: float = 0.0
    largest: float = 0.0

    def __add__(self, other: MismatchStats) -> MismatchStats:
        return MismatchStats(
            self.tokens + other.tokens,
            self.absolute + other.absolute,
            self.k1 + other.k1,
            self.k3 + other.k3,
            max(self.largest, other.largest),
        )

    def summary(self) -> dict[str, float]:
        """Metric name to value; empty when no token was seen."""
        if self.tokens == 0:
            return {}
        return {
            "logprob_diff_mean": self.absolute / self.tokens,
            "logprob_diff_max": self.largest,
            "rollout_kl": self.k1 / self.tokens,
            "rollout_kl_k3": self.k3 / self.tokens,
        }


def mismatch_stats(
    trainer_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor
) -> MismatchStats:
    """Mean and largest |difference| and KL(rollout || trainer), per action token."""
    mask = mask.bool()
    if not bool(mask.any()):
        return MismatchStats()
    d = (trainer_logprobs.detach()[mask] - rollout_logprobs.detach()[mask]).double()
    bounded = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3 = torch.expm1(bounded) - bounded
    sums = [mask.sum(), d.abs().sum(), -d.sum(), k3.sum(), d.abs().max()]
    return MismatchStats(*_floats(sums))


@dataclass(frozen=True, slots=True)
class ValueStats:
    """Sums over action tokens for the critic's logs."""

    tokens: float = 0.0
    clipped: float = 0.0
    squared_error: float = 0.0
    value: float = 0.0

    def __add__(self, other: ValueStats) -> ValueStats:
        return ValueStats(
            self.tokens + other.tokens,
            self.clipped + other.clipped,
            self.squared_error + other.squared_error,
            self.value + other.value,
        )

    def summary(self) -> dict[str, float]:
        """Metric name to value; empty when no token was seen."""
        if self.tokens == 0:
            return {}
        return {
            "vf_clipfrac": self.clipped / self.tokens,
            "vf_mse": self.squared_error / self.tokens,
            "vpred_mean": self.value / self.tokens,
        }


def value_stats(values: Tensor, returns: Tensor, mask: Tensor, terms: ValueLossTerms) -> ValueStats:
    """Clip fraction, squared error and mean prediction of one micro-batch."""
    mask = mask.bool()
    v, target = values.detach()[mask].double(), returns[mask].double()
    return ValueStats(
        *_floats([mask.sum(), (terms.clipped & mask).sum(), (v - target).square().sum(), v.sum()])
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """``1 - Var(R - V) / Var(R)`` over the global batch; 0 when the returns do not vary."""
    v, target = zero_outside(values, mask).double(), zero_outside(returns, mask).double()

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)).square(), mask)

    spread = float(variance(target))
    return 1.0 - float(variance(target - v)) / spread if spread > 0 else 0.0


def _floats(scalars: list[Tensor]) -> list[float]:
    """One device synchronisation for all of them."""
    return [float(x) for x in torch.stack([s.double() for s in scalars]).tolist()]
