"""Values worked by hand."""

import dataclasses
import math

import pytest
import torch

from agent_r1.algorithms.advantages import (
    dr_grpo,
    gae,
    grpo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)
from agent_r1.errors import ConfigError

GROUP_RELATIVE = [grpo, dr_grpo, rloo, reinforce_plus_plus_baseline]


def test_gae_by_hand_with_a_tool_between(batch, same):
    # delta_2 = 1 - 0.25 = 0.75; delta_1 = 0.9 * 0.25 - 0.5 = -0.275
    # A_1 = -0.275 + 0.9 * 0.8 * 0.75 = 0.265; the tool's value 9 is nobody's.
    inputs = batch([".0.1"], [1.0], values=[[7.0, 0.5, 9.0, 0.25]])
    result = gae(inputs, gamma=0.9, lam=0.8, whiten=False)
    same(result.advantages, [[0, 0.265, 0, 0.75]])
    same(result.returns, [[0, 0.765, 0, 1.0]])


def test_gae_bootstraps_what_was_cut(batch, same):
    # delta_2 = 1 + 0.9 * 2 - 0.25 = 2.55; A_1 = -0.275 + 0.72 * 2.55 = 1.561
    cut = batch(
        [".0.1", ".0.1"],
        [1.0, 1.0],
        values=[[7.0, 0.5, 9.0, 0.25]] * 2,
        truncated=[True, False],
        bootstrap_value=[2.0, 2.0],
    )
    result = gae(cut, gamma=0.9, lam=0.8, whiten=False)
    same(result.advantages, [[0, 1.561, 0, 2.55], [0, 0.265, 0, 0.75]])
    same(result.returns, [[0, 2.061, 0, 2.8], [0, 0.765, 0, 1.0]])


def test_gae_bootstraps_a_short_trajectory_beside_a_long_one(batch, same):
    inputs = batch(
        [".0", ".0.1"],
        [1.0, 1.0],
        values=torch.zeros(2, 4).double(),
        truncated=[True, False],
        bootstrap_value=[2.0, 2.0],
    )
    same(gae(inputs, whiten=False).returns, [[0, 3.0, 0, 0], [0, 1.0, 0, 1.0]])


def test_gae_chains_across_segments_in_their_order(batch, same):
    whole = batch([".0.1"], [1.0], values=[[0, 0.5, 0, 0.25]])
    parts = batch(
        ["..1", ".0."],
        [1.0, 1.0],
        trajectory=[5, 5],
        segment=[1, 0],
        values=[[0, 0, 0.25], [0, 0.5, 0]],
    )
    one = gae(whole, gamma=0.9, lam=0.8, whiten=False).advantages
    two = gae(parts, gamma=0.9, lam=0.8, whiten=False).advantages
    same(two, [[0, 0, one[0, 3]], [0, one[0, 1], 0]])


def test_gae_whitens_over_action_tokens_only(batch, same):
    inputs = batch([".0.1", ".0"], [1.0, 0.0], values=[[9, 0, 9, 0], [9, 0, 9, 9]])
    advantages = gae(inputs).advantages
    # Raw: 1, 1, 0. Mean 2/3, sample variance 1/3.
    same(advantages, [[0, 3**-0.5, 0, 3**-0.5], [0, -2 * 3**-0.5, 0, 0]], atol=1e-6)


def test_gae_says_that_it_needs_values(batch):
    with pytest.raises(ConfigError, match=r"gae needs AdvantageInputs\.values"):
        gae(batch([".0"], [1.0]))


def test_grpo_by_hand(batch, same):
    inputs = batch([".0", ".0.", ".0.1", ".00"], [1.0, 2.0, 3.0, 7.0], group=[4, 4, 4, 9])
    scale = 1 + 1e-6
    same(
        grpo(inputs).advantages,
        [[0, -1 / scale, 0, 0], [0, 0, 0, 0], [0, 1 / scale, 0, 1 / scale], [0, 0, 0, 0]],
    )
    same(grpo(inputs, epsilon=1.0).advantages[:, 1], [-0.5, 0, 0.5, 0])


def test_dr_grpo_does_not_divide(batch, same):
    inputs = batch([".0"] * 3, [0.0, 0.0, 3.0])
    same(dr_grpo(inputs).advantages[:, 1], [-1.0, -1.0, 2.0])
    same(grpo(inputs, norm_adv_by_std_in_grpo=False).advantages[:, 1], [-1.0, -1.0, 2.0])


def test_rloo_by_hand(batch, same):
    inputs = batch([".0"] * 4, [1.0, 2.0, 6.0, 5.0], group=[0, 0, 0, 1])
    same(rloo(inputs).advantages[:, 1], [1 - 4, 2 - 3.5, 6 - 1.5, 0])


def test_reinforce_plus_plus_by_hand(batch, same):
    inputs = batch([".0.1", ".00"], [1.0, 0.0])
    raw = reinforce_plus_plus(inputs, gamma=0.5, whiten=False)
    same(raw.advantages, [[0, 0.5, 0, 1.0], [0, 0, 0, 0]])
    result = reinforce_plus_plus(inputs, gamma=0.5)
    std = math.sqrt(0.6875 / 3)  # of 0.5, 1, 0, 0 around 0.375
    same(
        result.advantages,
        [[0, 0.125 / std, 0, 0.625 / std], [0, -0.375 / std, -0.375 / std, 0]],
        atol=1e-6,
    )
    same(result.returns, raw.returns)


def test_reinforce_plus_plus_baseline_by_hand(batch, same):
    inputs = batch([".0", ".0.1"], [0.0, 2.0])
    # Centred: -1, 1, 1. Mean 1/3, sample variance (16/9 + 4/9 + 4/9) / 2 = 4/3.
    std = math.sqrt(4 / 3)
    same(
        reinforce_plus_plus_baseline(inputs).advantages,
        [[0, -4 / 3 / std, 0, 0], [0, 2 / 3 / std, 0, 2 / 3 / std]],
        atol=1e-6,
    )
    same(
        reinforce_plus_plus_baseline(inputs, whiten=False).advantages,
        dr_grpo(inputs).advantages,
    )


def test_remax_by_hand(batch, same):
    inputs = batch([".0.1", ".0"], [1.0, 0.0], greedy_reward=[0.25, 0.5])
    result = remax(inputs)
    same(result.advantages, [[0, 0.75, 0, 0.75], [0, -0.5, 0, 0]])
    same(result.returns, [[0, 1, 0, 1], [0, 0, 0, 0]])
    with pytest.raises(ConfigError, match="greedy_reward"):
        remax(batch([".0"], [1.0]))


def test_kl_in_the_reward_reaches_every_estimator(batch, same):
    kl = [[9.0, -0.5, 9.0, -0.25], [9.0, 0, 0, 9.0]]
    inputs = batch(
        [".0.1", ".00"],
        [1.0, 0.0],
        token_reward=kl,
        values=torch.zeros(2, 4).double(),
        greedy_reward=[0.0, 0.0],
    )
    same(gae(inputs, whiten=False).advantages[0], [0, 0.25, 0, 0.75])
    same(reinforce_plus_plus(inputs, whiten=False).advantages[0], [0, 0.25, 0, 0.75])
    same(remax(inputs).advantages[0], [0, 0.25, 0, 0.75])
    same(dr_grpo(inputs).advantages[0], [0, 0.125, 0, 0.125])
    same(rloo(inputs).advantages[0], [0, 0.25, 0, 0.25])


@pytest.mark.parametrize("estimator", GROUP_RELATIVE)
def test_a_group_of_one_has_nothing_to_compare_with(estimator, batch, same):
    inputs = batch([".0.1"], [5.0])
    same(estimator(inputs).advantages, torch.zeros(1, 4).double())


@pytest.mark.parametrize("estimator", GROUP_RELATIVE)
def test_a_group_of_which_nobody_is_counted_has_no_baseline_either(estimator, batch, same):
    inputs = batch([".0", ".0"], [5.0, 3.0], counted=[False, False])
    same(estimator(inputs).advantages, torch.zeros(2, 2).double())


@pytest.mark.parametrize("estimator", GROUP_RELATIVE)
def test_baselines_count_a_trajectory_once_however_many_segments_it_has(estimator, batch, same):
    # Trajectory 0 scored 1 and was cut into three rows; trajectory 1 scored 0.
    cut = batch(
        [".0.", ".1.", ".2.", ".0."],
        [1.0, 1.0, 1.0, 0.0],
        trajectory=[0, 0, 0, 1],
        segment=[0, 1, 2, 0],
    )
    whole = batch([".0.1.2", ".0...."], [1.0, 0.0])
    a, b = estimator(cut).advantages, estimator(whole).advantages
    same(a[:3, 1], b[0, [1, 3, 5]])
    same(a[3, 1], b[1, 1])


@pytest.mark.parametrize("estimator", GROUP_RELATIVE)
def test_who_is_not_counted_is_absent_from_the_baseline_and_not_zero(estimator, batch, same):
    three = batch([".0"] * 3, [1.0, 0.5, 99.0], counted=[True, True, False])
    three = dataclasses.replace(three, loss_mask=three.loss_mask & three.counted[:, None])
    two = batch([".0"] * 2, [1.0, 0.5])
    same(estimator(three).advantages[:2], estimator(two).advantages)
    same(estimator(three).advantages[2], [0.0, 0.0])


def test_a_masked_trajectory_may_stay_in_the_baseline(batch, same):
    # Overlong masking: no gradient from the third, but the others are measured against it.
    inputs = batch([".0", ".0", ".."], [1.0, 0.0, -4.0], counted=[True, True, True])
    same(dr_grpo(inputs).advantages, [[0, 2.0], [0, 1.0], [0, 0]])


@pytest.mark.parametrize("n", [2, 3, 6, 7, 9])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -0.2])
def test_equal_scores_give_no_gradient_whatever_their_rounding(n, value, batch):
    inputs = batch([".0"] * n, [value] * n)
    inputs = dataclasses.replace(inputs, reward=inputs.reward.float())
    for estimator in (grpo, dr_grpo, rloo):
        assert not estimator(inputs).advantages.any()


def test_the_rounding_trap_is_real():
    def in_float32(n, value):
        rewards = torch.full((n,), value)
        return float(((rewards - rewards.mean()) / (rewards.std() + 1e-6)).abs().max())

    assert max(in_float32(n, v) for n in (3, 7, 9, 11) for v in (0.1, 0.7, 0.9)) > 1e-2


def test_the_dtype_of_the_reward_is_kept(batch):
    inputs = batch([".0"] * 2, [1.0, 0.0], values=torch.zeros(2, 2))
    inputs = dataclasses.replace(inputs, reward=inputs.reward.float())
    for estimator in (gae, grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline):
        assert estimator(inputs).advantages.dtype == torch.float32
