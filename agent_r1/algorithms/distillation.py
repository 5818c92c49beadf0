r"""On-policy distillation: a teacher grades every token that the student sampled.

The student is trained towards the least reverse Kullback-Leibler divergence to the teacher on
its own trajectories, ``E_{y ~ student} sum_t [log p_S(y_t | y_<t) - log p_T(y_t | y_<t)]``
(Agarwal et al. 2024, GKD, arXiv 2306.13649; Gu et al. 2024, MiniLLM, arXiv 2306.08543). Only
action tokens count; what a tool wrote is context for both.

:func:`opd` takes the divergence at the sampled token alone as that token's advantage, which needs
one number of the teacher for each token. :func:`reverse_kl` and :func:`reverse_kl_top_k` are the
divergence of whole distributions at each position.
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


def gap_advantage(gap: Tensor, mask: Tensor, *, coef: float = 1.0, clip: float | None) -> Tensor:
    """``coef`` times the gap ``log p_T - log p_S`` [B, T], bounded, and 0 outside of the mask."""
    bounded = gap if clip is None else gap.clamp(-clip, clip)
    return coef * zero_outside(bounded, mask)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``sum_v p_S(v) (log p_S(v) - log p_T(v))`` in nats: [..., V] to [...].

    Exact, differentiable in the student's logits; the teacher's are constants.
    """
    student = torch.log_softmax(student_logits, -1)
    teacher = torch.log_softmax(teacher_logits.detach(), -1)
    return (student.exp() * (student - teacher)).sum(-1)


def reverse_kl_top_k(student_logits: Tensor, teacher_logits: Tensor, k: int) -> Tensor:
    """The same over the student's ``k`` likeliest tokens and one bucket for all others.

    Merging tokens can only lose divergence, so this is at most :func:`reverse_kl`, and equal to
    it for ``k`` of at least V - 1. The tokens are chosen by the student because it is its mass
    that the reverse divergence weighs.
    """
    student = torch.log_softmax(student_logits, -1)
    teacher = torch.log_softmax(teacher_logits.detach(), -1)
    width = student.shape[-1]
    if k >= width:
        return reverse_kl(student_logits, teacher_logits)
    kept = student.detach().topk(k, -1).indices
    rest = torch.ones_like(student, dtype=torch.bool).scatter(-1, kept, False)
    head = (student.exp() * (student - teacher)).masked_fill(rest, 0.0).sum(-1)
    tails = [
        logprobs.masked_fill(~rest, -torch.inf).logsumexp(-1) for logprobs in (student, teacher)
    ]
    return head + tails[0].exp() * (tails[0] - tails[1])
