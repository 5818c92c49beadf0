"""Mistakes that such systems have made. Each test fails on the mistake."""

import dataclasses

import pytest
import torch

from agent_r1.algorithms.advantages import reinforce_plus_plus
from agent_r1.algorithms.aggregate import aggregate, loss_weights
from agent_r1.algorithms.losses import PolicyLossInputs, ppo
from agent_r1.algorithms.registry import ADVANTAGES, resolve_advantage
from agent_r1.algorithms.shaping import has_signal

ESTIMATORS = sorted({*ADVANTAGES.names()} - {"opd"})  # which reads no reward


def run(name, batch, rows, reward, **optional):
    width = max(map(len, rows))
    return resolve_advantage(name)(
        batch(
            rows,
            reward,
            values=torch.zeros(len(rows), width).double(),
            greedy_reward=[0.25] * len(rows),
            **optional,
        )
    ).advantages


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_reward_is_not_lost_when_the_trajectory_ends_on_tool_output(name, batch, same):
    on_action = run(name, batch, [".00.1", ".0..."], [1.0, 0.0])
    on_tool = run(name, batch, [".00.1...", ".0......"], [1.0, 0.0])
    same(on_tool[:, :5], on_action)
    assert on_tool[0, 1] > 0 and on_tool[0, 4] > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_credit_crosses_a_tool_span(name, batch, same):
    with_tool = run(name, batch, [".0...0", ".0...0"], [1.0, 0.0])
    without = run(name, batch, [".00", ".00"], [1.0, 0.0])
    same(with_tool[:, [1, 5]], without[:, 1:])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_process_rewards_reach_the_gradient(name, batch):
    """Two trajectories of equal outcome; only the tool call of the first was worth something."""

    def gradient(**optional):
        rows = [".00.1", ".00.1"]
        advantages = run(name, batch, rows, [1.0, 1.0], **optional)
        mask = advantages.new_tensor([[c.isdigit() for c in row] for row in rows]).bool()
        logprobs = torch.zeros_like(advantages).requires_grad_()
        terms = ppo(PolicyLossInputs(logprobs, logprobs.detach(), advantages, mask))
        aggregate(terms.loss, mask, loss_weights(mask)).backward()
        return logprobs.grad

    worth = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    plain, taught = gradient(), gradient(turn_reward=worth)
    difference = plain - taught  # a descent direction is minus the gradient
    assert difference[0, 1] > 0.01, "the turn that earned it is made likelier"
    assert difference[0, 1] > difference[1, 1], "than the same turn that earned nothing"
    assert difference[0, 1] > difference[0, 4], "and credit does not flow backwards in time"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_trajectory_of_many_turns_does_not_outvote_its_siblings(name, batch, same):
    """One trajectory cut into three segments is one vote in the baseline."""
    rows = [".0....", ".1....", ".2....", ".0.1.2", ".0.1.2"]
    cut = run(
        name,
        batch,
        rows,
        [3.0] * 3 + [0.0, 0.0],
        trajectory=[0, 0, 0, 1, 2],
        segment=[0, 1, 2, 0, 0],
    )
    whole = run(name, batch, [".0.1.2"] * 3, [3.0, 0.0, 0.0])
    same(cut[:3, 1], whole[0, [1, 3, 5]])
    same(cut[3:], whole[1:])


def test_a_return_is_not_reset_at_a_tool_span(batch, same):
    inputs = batch([".0.....1.."], [1.0])
    same(reinforce_plus_plus(inputs, gamma=0.5, whiten=False).returns[0, [1, 7]], [0.5, 1.0])


def test_a_fully_masked_row_among_others_is_no_nan():
    mask = torch.tensor([[False, True], [False, False]])
    loss = torch.ones(2, 2, requires_grad=True)
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        assert aggregate(loss, mask, loss_weights(mask, mode)).item() == 1.0


def test_the_size_of_a_micro_batch_does_not_change_the_step():
    """Rows of 1 and of 9 tokens: means of means would weigh the short one nine times."""
    mask = torch.tensor([[True] + [False] * 8, [True] * 9])
    logprobs = torch.zeros(2, 9, requires_grad=True)
    weights = loss_weights(mask)
    for rows in ([0], [1]):
        aggregate(-logprobs[rows], mask[rows], weights[rows]).backward()
    torch.testing.assert_close(logprobs.grad[mask], torch.full((10,), -0.1))


def test_a_failed_sibling_is_absent_and_not_a_zero(batch, same):
    inputs = batch([".0", ".0", ".."], [1.0, 1.0, 0.0])
    for name in ("grpo", "dr_grpo", "rloo"):
        same(resolve_advantage(name)(inputs).advantages, torch.zeros(3, 2).double())


def test_dynamic_sampling_looks_at_the_outcome_before_any_shaping():
    assert not has_signal([0.0, 0.0, 0.0])
    assert has_signal([0.0, 0.0 - 0.3, 0.0])  # what a length penalty would have made of it


def test_zero_variance_is_decided_without_rounding(batch):
    inputs = batch([".0"] * 7, [0.7] * 7)
    inputs = dataclasses.replace(inputs, reward=inputs.reward.float())
    assert not resolve_advantage("grpo")(inputs).advantages.any()
