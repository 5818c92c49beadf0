"""Estimator, loss and aggregation together give the gradient of the expected reward. Exactly.

A world small enough to enumerate: the model writes one of two tokens, a tool answers with
one of two tokens (which depends on what was written), the model writes one of two tokens
again. The expectation of the loss gradient over all groups of two trajectories is computed
without sampling and compared with the gradient of the expected reward.
"""

import itertools

import pytest
import torch

from agent_r1.algorithms.advantages import (
    dr_grpo,
    gae,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)
from agent_r1.algorithms.aggregate import aggregate, loss_weights
from agent_r1.algorithms.episodes import AdvantageInputs
from agent_r1.algorithms.losses import PolicyLossInputs, cispo, gspo, ppo, reinforce
from agent_r1.algorithms.turns import gigpo, turn_gae

TRAJECTORIES = list(itertools.product((0, 1), (0, 1)))  # first action, second action
REWARD = torch.tensor([[0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
# Columns: prompt, first action, tool answer, second action.
MASK = torch.tensor([False, True, False, True])
TURN = torch.tensor([-1, 0, -1, 1])
GROUPS = list(itertools.product(TRAJECTORIES, repeat=2))


def parameters() -> torch.Tensor:
    """Logits [state, action]: state 0 begins; state 1 + tool answer comes after the tool."""
    values = [[0.2, -0.3], [0.5, 0.1], [-0.7, 0.4]]
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def trajectory_logprobs(logits: torch.Tensor, trajectory: tuple[int, int]) -> torch.Tensor:
    """[4]; prompt and tool positions hold what a model would assign to foreign tokens."""
    table = torch.log_softmax(logits, 1)
    first, second = trajectory
    foreign = torch.log_softmax(logits.flatten(), 0)
    return torch.stack([foreign[0], table[0, first], foreign[1], table[1 + first, second]])


def true_gradient() -> torch.Tensor:
    logits = parameters()
    expected = sum(
        (trajectory_logprobs(logits, t) * MASK).sum().exp() * REWARD[t] for t in TRAJECTORIES
    )
    return torch.autograd.grad(expected, logits)[0]


def group_inputs(group, logprobs) -> AdvantageInputs:
    n = len(group)
    return AdvantageInputs(
        loss_mask=MASK.expand(n, 4),
        reward=torch.stack([REWARD[t] for t in group]),
        group_id=torch.zeros(n, dtype=torch.int64),
        trajectory_id=torch.arange(n),
        segment=torch.zeros(n, dtype=torch.int64),
        turn_index=TURN.expand(n, 4),
        # Any function of the state is a valid baseline: what was before the action.
        values=torch.stack(
            [torch.tensor([9.0, 0.4, 9.0, -1.5 + 2 * t[0]], dtype=torch.float64) for t in group]
        ),
        greedy_reward=torch.full((n,), 0.7, dtype=torch.float64),
        state_id=torch.tensor([[0, 1 + t[0]] for t in group]),
    )


def expected_gradient(estimator, loss, mode="seq-mean-token-sum", mask=MASK) -> torch.Tensor:
    """- E[gradient of the loss], over all groups of two."""
    total = torch.zeros(3, 2, dtype=torch.float64)
    for group in GROUPS:
        logits = parameters()
        logprobs = torch.stack([trajectory_logprobs(logits, t) for t in group])
        probability = (logprobs * MASK).sum().exp().detach()
        advantages = estimator(group_inputs(group, logprobs)).advantages
        loss_mask = mask.expand(len(group), 4)
        inputs = PolicyLossInputs(logprobs, logprobs.detach(), advantages, loss_mask)
        value = aggregate(loss(inputs).loss, loss_mask, loss_weights(loss_mask, mode))
        total -= probability * torch.autograd.grad(value, logits)[0]
    return total


UNBIASED = {
    "rloo": (rloo, 1.0),
    "dr_grpo": (dr_grpo, 0.5),  # (n - 1) / n, for the own reward is in the mean
    "remax": (remax, 1.0),
    "reinforce_plus_plus": (lambda x: reinforce_plus_plus(x, whiten=False), 1.0),
    "reinforce_plus_plus_baseline": (lambda x: reinforce_plus_plus_baseline(x, whiten=False), 0.5),
    "gae": (lambda x: gae(x, whiten=False), 1.0),
    "turn_gae": (lambda x: turn_gae(x, whiten=False), 1.0),
}


@pytest.mark.parametrize("loss", [ppo, gspo, cispo, reinforce])
@pytest.mark.parametrize("name", UNBIASED)
def test_the_expected_update_is_the_gradient_of_the_expected_reward(name, loss, same):
    estimator, factor = UNBIASED[name]
    same(expected_gradient(estimator, loss), factor * true_gradient(), atol=1e-12)


def test_the_constant_divisor_only_scales(same):
    def loss_norm(group_mask, mode):
        return loss_weights(group_mask, mode, divisor=8.0)

    mask = MASK.expand(2, 4)
    same(loss_norm(mask, "seq-mean-token-sum-norm"), loss_norm(mask, "seq-mean-token-sum") / 8)


def test_gae_with_exact_values_is_unbiased_for_any_lambda(same):
    logits = parameters().detach()
    after = torch.log_softmax(logits, 1).exp()
    second = [(after[1 + a] * REWARD[a]).sum() for a in (0, 1)]
    begin = sum(after[0, a] * second[a] for a in (0, 1))

    def estimator(inputs):
        values = torch.zeros(2, 4, dtype=torch.float64)
        values[:, 1] = begin
        values[:, 3] = torch.stack(second)[inputs.state_id[:, 1] - 1]
        exact = AdvantageInputs(
            inputs.loss_mask,
            inputs.reward,
            inputs.group_id,
            inputs.trajectory_id,
            inputs.segment,
            inputs.turn_index,
            values=values,
        )
        return gae(exact, lam=0.3, whiten=False)

    same(expected_gradient(estimator, ppo), true_gradient(), atol=1e-12)


def test_step_groups_alone_point_uphill():
    """GiGPO's step term is biased by design; its expected update still climbs."""

    def step_only(inputs):
        return gigpo(inputs, norm_adv_by_std_in_grpo=False)

    update = expected_gradient(step_only, ppo)
    cosine = torch.cosine_similarity(update.flatten(), true_gradient().flatten(), dim=0)
    assert cosine > 0.9


def test_training_on_tool_tokens_would_be_noticed(same):
    """The same check with the mask deliberately broken does not hold."""

    def everywhere(inputs):
        advantages = rloo(inputs).advantages
        return type(rloo(inputs))(advantages.amax(1, keepdim=True) + 0 * advantages)

    broken = expected_gradient(everywhere, ppo, mask=torch.ones(4, dtype=torch.bool))
    assert (broken - true_gradient()).abs().max() > 0.01
