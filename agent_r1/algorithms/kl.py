"""KL to the reference policy: estimators per token, as a reward and as a loss.

With ``d = log pi - log pi_ref`` of a token drawn from pi (Schulman 2020, "Approximating KL
divergence"): ``k1 = d`` is unbiased, ``k2 = d^2 / 2`` has little bias and the right
gradient, ``k3 = exp(-d) + d - 1`` is unbiased and never negative. As a *loss*, the gradient
of k1 has expectation 0 and that of k3 is the reverse direction's; only k2's is that of KL.
A ``+`` behind the name keeps the estimator's value and takes k2's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agent_r1.algorithms.masked import masked_mean, zero_outside
from agent_r1.errors import ConfigError

MAX_LOG_RATIO = 20.0
"""d is clamped to this magnitude inside k3, whose exponential would overflow."""

_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}
KL_ESTIMATORS = ("k1", "k2", "k3", "abs", *_ALIASES)


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k3") -> Tensor:
    """Per-token estimate ``[...]`` of KL(pi || ref) from sampled tokens.

    Args:
        logprobs: [...] of pi; may carry a gradient.
        ref_logprobs: [...] of the reference.
        kind: ``k1`` (also ``kl``), ``k2`` (``mse``), ``k3`` (``low_var_kl``) or ``abs``,
            each with an optional ``+``: this value, the gradient of k2.

    Raises:
        ConfigError: no estimator of that name.
    """
    d = logprobs - ref_logprobs.detach()
    value = _estimate(d, kind.removesuffix("+"))
    if not kind.endswith("+"):
        return value
    gradient = 0.5 * d.square()
    return value.detach() + gradient - gradient.detach()


def _estimate(d: Tensor, kind: str) -> Tensor:
    name = _ALIASES.get(kind, kind)
    if name == "k1":
        return d
    if name == "k2":
        return 0.5 * d.square()
    if name == "k3":
        d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return torch.expm1(-d) + d
    if name == "abs":
        return d.abs()
    raise ConfigError(
        f"no KL estimator is called {kind!r}; known: {', '.join(KL_ESTIMATORS)}, "
        "each also with '+' for the gradient of k2"
    )


@dataclass(frozen=True, slots=True)
class KLReward:
    """What KL in the reward gives to the advantage estimator and to the controller."""

    token_reward: Tensor
    """[B, T] ``-coef KL``, 0 outside of the mask."""
    mean_kl: float
    """Mean over rows with tokens of their mean per-token KL, in nats."""


def kl_reward(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, coef: float, kind: str = "k1"
) -> KLReward:
    """KL as a per-token reward (Ziegler et al. 2019, eq. 2), on action tokens only."""
    d = zero_outside(kl_penalty(logprobs.detach(), ref_logprobs, kind), mask)
    rows = mask.bool().any(1)
    return KLReward(-coef * d, float(masked_mean(masked_mean(d, mask, 1), rows)))


class KLController(Protocol):
    """Owns the coefficient of KL in the reward; part of every checkpoint."""

    coef: float

    def update(self, current_kl: float, n_steps: int) -> None:
        """Tell the measured KL of ``n_steps`` trajectories that were just trained on."""

    def state_dict(self) -> dict[str, float]:
        """All that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from :meth:`state_dict`."""


class FixedKLController:
    """A coefficient that stays."""

    def __init__(self, kl_coef: float = 0.001) -> None:
        self.coef = kl_coef

    def update(self, current_kl: float, n_steps: int) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = state["coef"]


class AdaptiveKLController(FixedKLController):
    """Proportional control towards ``target_kl`` (Ziegler et al. 2019, section 2.2).

    ``coef *= 1 + clip(kl / target - 1, -0.2, 0.2) n_steps / horizon``.
    """

    def __init__(
        self, kl_coef: float = 0.001, target_kl: float = 0.1, horizon: float = 10_000
    ) -> None:
        super().__init__(kl_coef)
        if target_kl <= 0 or horizon <= 0:
            raise ConfigError(f"target_kl and horizon must be positive: {target_kl}, {horizon}")
        self.target_kl = target_kl
        self.horizon = horizon

    def update(self, current_kl: float, n_steps: int) -> None:
        error = min(max(current_kl / self.target_kl - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_steps / self.horizon


def make_kl_controller(
    type: str = "fixed",
    *,
    kl_coef: float = 0.001,
    target_kl: float = 0.1,
    horizon: float = 10_000,
) -> KLController:
    """The controller of ``algorithm.kl_ctrl``: ``fixed`` or ``adaptive``."""
    if type == "fixed":
        return FixedKLController(kl_coef)
    if type == "adaptive":
        return AdaptiveKLController(kl_coef, target_kl, horizon)
    raise ConfigError(f"algorithm.kl_ctrl.type is 'fixed' or 'adaptive', not {type!r}")
