r"""On-policy distillation: a teacher grades every token that the student sampled.

The student is trained towards the least reverse Kullback-Leibler divergence to the teacher on
its own trajectories, ``E_{y ~ student} sum_t [log p_S(y_t | y_<t) - log p_T(y_t | y_<t)]``
(Agarwal et al. 2024, GKD, arXiv 2306.13649; Gu et al. 2024, MiniLLM, arXiv 2306.08543). Only
action tokens count; what a tool wrote is context for both.

:func:`opd` takes the divergence at the sampled token alone as that token's advantage, which needs
one number of the teacher for each token. The divergence over the teacher's most probable tokens,
or over all of them, is a term of the loss (:mod:`agent_r1.models.divergence`), beside which
:func:`silent` leaves no advantage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent_r1.algorithms.episodes import AdvantageInputs, AdvantageResult
from agent_r1.algorithms.masked import zero_outside
from agent_r1.errors import ConfigError


def opd(inputs: AdvantageInputs, *, clip: float | None = None) -> AdvantageResult:
    """``A_t = log p_T(y_t) - log p_S(y_t)``, no discount and no outcome reward.

    The mean over samples of ``A_t grad log p_S(y_t)`` is minus the gradient of the reverse KL
    of that position. ``clip`` bounds the magnitude of an advantage, in nats.
    """
    if inputs.teacher_gap is None:
        raise ConfigError(
            "the estimator opd needs a teacher: set algorithm.distillation.teacher to a model "
            "folder, or algorithm.distillation.server to the address of a server"
        )
    return AdvantageResult(gap_advantage(inputs.teacher_gap, inputs.loss_mask, clip=clip))


def silent(inputs: AdvantageInputs) -> AdvantageResult:
    """No advantage: the teacher speaks in the loss alone."""
    return AdvantageResult(torch.zeros(inputs.loss_mask.shape, device=inputs.loss_mask.device))


def gap_advantage(gap: Tensor, mask: Tensor, *, coef: float = 1.0, clip: float | None) -> Tensor:
    """``coef`` times the gap ``log p_T - log p_S`` [B, T], bounded, and 0 outside of the mask."""
    bounded = gap if clip is None else gap.clamp(-clip, clip)
    return coef * zero_outside(bounded, mask)
