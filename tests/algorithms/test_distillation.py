"""Reverse KL to a teacher, worked by hand, and what holds entropy up."""

import math

import pytest
import torch

from agent_r1.algorithms.covariance import clip_cov, covariance
from agent_r1.algorithms.distillation import gap_advantage, opd
from agent_r1.algorithms.episodes import AdvantageInputs
from agent_r1.errors import ConfigError

HALVES = torch.tensor([0.5, 0.25, 0.25]).log()
SKEWED = torch.tensor([0.25, 0.5, 0.25]).log()


def inputs(gap):
    """Two action tokens, a tool's token, an action token."""
    mask = torch.tensor([[True, True, False, True]])
    return AdvantageInputs(
        loss_mask=mask,
        reward=torch.tensor([7.0]),
        group_id=torch.tensor([0]),
        trajectory_id=torch.tensor([0]),
        segment=torch.tensor([0]),
        turn_index=torch.tensor([[0, 0, -1, 1]]),
        teacher_gap=gap,
    )


def test_the_advantage_is_the_gap_on_action_tokens_only():
    """The teacher's log-probability less the student's; what a tool wrote is worth nothing."""
    gap = torch.tensor([[math.log(2.0), -1.0, math.nan, 20.0]])
    expected = torch.tensor([[math.log(2.0), -1.0, 0.0, 20.0]])
    assert torch.equal(opd(inputs(gap)).advantages, expected)
    expected[0, 3] = 10.0
    assert torch.equal(opd(inputs(gap), clip=10.0).advantages, expected)
    half = gap_advantage(gap, inputs(gap).loss_mask, coef=0.5, clip=None)
    assert torch.equal(half, torch.tensor([[math.log(2.0) / 2, -0.5, 0.0, 10.0]]))


def test_without_a_teacher_the_remedy_is_named():
    with pytest.raises(ConfigError, match=r"algorithm\.distillation\.teacher"):
        opd(inputs(None))


def test_the_sampled_advantage_points_where_the_exact_gradient_does():
    """Summed over all tokens with the student's probabilities it is minus that gradient."""
    student = torch.tensor([0.3, -0.2, 0.9, 0.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([1.0, 0.5, -1.0, 0.2], dtype=torch.float64)
    log_p = torch.log_softmax(student, 0)
    divergence = (log_p.exp() * (log_p - torch.log_softmax(teacher, 0))).sum()
    (exact,) = torch.autograd.grad(divergence, student)
    logprobs = torch.log_softmax(student, 0)
    gap = (torch.log_softmax(teacher, 0) - logprobs).detach()
    surrogate = (logprobs.exp().detach() * gap * logprobs).sum()
    (sampled,) = torch.autograd.grad(surrogate, student)
    assert torch.allclose(sampled, -exact)


LOGPROBS = torch.tensor([[-1.0, -4.0, -2.0, -3.0, 9.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0, 5.0]])
MASK = torch.tensor([[True, True, True, True, False]])


def test_covariance_by_hand():
    """The means over the mask are -2.5 and 0."""
    found = covariance(LOGPROBS, ADVANTAGES, MASK)
    assert torch.equal(found, torch.tensor([[1.5, -1.5, -0.5, 0.5, 0.0]]))


def test_clip_cov_takes_the_advantage_of_the_one_token_between_the_bounds():
    found = clip_cov(ADVANTAGES, LOGPROBS, MASK, low=1.0, high=5.0)
    assert torch.equal(found, torch.tensor([[0.0, 1.0, -1.0, -1.0, 5.0]]))
    assert torch.equal(clip_cov(ADVANTAGES, LOGPROBS, MASK, low=2.0), ADVANTAGES)


def test_clip_cov_draws_the_share_that_is_asked_for():
    draw = torch.Generator().manual_seed(0)
    logprobs, advantages = torch.randn(2, 10, 100, generator=draw)
    mask = torch.ones(10, 100, dtype=torch.bool)
    found = clip_cov(advantages, logprobs, mask, ratio=0.05, low=0.5, high=3.0)
    stopped = found != advantages
    assert int(stopped.sum()) == 50
    cov = covariance(logprobs, advantages, mask)[stopped]
    assert bool(((cov >= 0.5) & (cov <= 3.0)).all())


def test_no_action_token_changes_nothing():
    assert torch.equal(clip_cov(ADVANTAGES, LOGPROBS, torch.zeros_like(MASK)), ADVANTAGES)
