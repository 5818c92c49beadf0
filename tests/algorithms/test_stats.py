import math

import pytest
import torch

from agent_r1.algorithms.losses import PolicyLossInputs, ppo, value_loss
from agent_r1.algorithms.stats import (
    MismatchStats,
    PolicyStats,
    ValueStats,
    explained_variance,
    mismatch_stats,
    policy_stats,
    value_stats,
)

MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]], dtype=torch.bool)
RATIO = torch.tensor([[1.5, 0.5, 9.0, 1.0], [9.0, 5.0, 9.0, 1.1]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0]], dtype=torch.float64)
INPUTS = PolicyLossInputs(RATIO.log(), torch.zeros(2, 4).double(), ADVANTAGES, MASK)


def rows(inputs: PolicyLossInputs, index) -> PolicyLossInputs:
    return PolicyLossInputs(
        inputs.logprobs[index],
        inputs.old_logprobs[index],
        inputs.advantages[index],
        inputs.loss_mask[index],
    )


def test_policy_stats_by_hand():
    summary = policy_stats(INPUTS, ppo(INPUTS)).summary()
    ratios = [1.5, 0.5, 1.0, 5.0, 1.1]
    logs = [math.log(r) for r in ratios]
    assert summary == pytest.approx(
        {
            "pg_clipfrac": 2 / 5,
            "pg_clipfrac_low": 1 / 5,
            "pg_clipfrac_high": 1 / 5,
            "pg_clipfrac_dual": 1 / 5,
            "ppo_kl": -sum(logs) / 5,
            "ppo_kl_k3": sum(r - 1 - x for r, x in zip(ratios, logs, strict=True)) / 5,
            "ratio_mean": sum(ratios) / 5,
            "ratio_max": 5.0,
            "ratio_min": 0.5,
        }
    )


def test_stats_of_micro_batches_add_up_to_those_of_the_whole():
    whole = policy_stats(INPUTS, ppo(INPUTS))
    parts = [rows(INPUTS, [i]) for i in (0, 1)]
    total = sum((policy_stats(p, ppo(p)) for p in parts), PolicyStats())
    assert total.summary() == pytest.approx(whole.summary())


def test_mismatch_by_hand_and_in_parts():
    rollout = INPUTS.logprobs + torch.tensor([0.1, -0.3, math.nan, 0.0])
    rollout = torch.where(MASK, rollout, math.nan)
    whole = mismatch_stats(INPUTS.logprobs, rollout, MASK)
    gaps = [0.1, -0.3, 0.0, -0.3, 0.0]  # rollout - trainer
    assert whole.summary() == pytest.approx(
        {
            "logprob_diff_mean": 0.7 / 5,
            "logprob_diff_max": 0.3,
            "rollout_kl": sum(gaps) / 5,
            "rollout_kl_k3": sum(math.exp(-g) - 1 + g for g in gaps) / 5,
        }
    )
    parts = [mismatch_stats(INPUTS.logprobs[[i]], rollout[[i]], MASK[[i]]) for i in (0, 1)]
    assert sum(parts, MismatchStats()).summary() == pytest.approx(whole.summary())


def test_value_stats_by_hand():
    values = torch.tensor([[1.0, 2.0, math.nan, 0.0], [math.nan, 4.0, math.nan, 1.0]])
    returns = torch.tensor([[1.0, 0.0, math.nan, 0.0], [math.nan, 3.0, math.nan, 0.0]])
    terms = value_loss(values, torch.zeros(2, 4), returns, MASK, cliprange_value=0.5)
    summary = value_stats(values, returns, MASK, terms).summary()
    assert summary == pytest.approx({"vf_clipfrac": 2 / 5, "vf_mse": 6 / 5, "vpred_mean": 8 / 5})


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[0.0, 1.0, 2.0, math.nan]])
    poison = torch.tensor([[0.0, 0.0, 0.0, math.inf]])
    assert explained_variance(returns + poison, returns, mask) == pytest.approx(1.0)
    assert explained_variance(0 * returns + poison, returns, mask) == pytest.approx(0.0)
    assert explained_variance(2 - returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.zeros(1, 4), mask) == 0.0


def test_nothing_seen_is_an_empty_summary_and_no_nan():
    empty = torch.zeros_like(MASK)
    inputs = PolicyLossInputs(INPUTS.logprobs, INPUTS.old_logprobs, ADVANTAGES, empty)
    assert policy_stats(inputs, ppo(inputs)).summary() == {}
    assert mismatch_stats(INPUTS.logprobs, INPUTS.logprobs, empty).summary() == {}
    terms = value_loss(RATIO, RATIO, RATIO, empty)
    assert value_stats(RATIO, RATIO, empty, terms).summary() == {}
    assert ValueStats().summary() == {}


def test_bfloat16_numbers_are_summed_in_float64():
    many = torch.full((1, 100_000), 0.1, dtype=torch.bfloat16)
    stats = mismatch_stats(many, torch.zeros_like(many), torch.ones_like(many, dtype=torch.bool))
    assert stats.summary()["logprob_diff_mean"] == pytest.approx(0.10009765625)
