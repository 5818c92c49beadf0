"""Our numbers against those of verl and TRL, produced by ``make_oracle.py``.

Everything that we share agrees to 1e-6 or better. Where we differ on purpose, a test shows
both numbers; ``docs/algorithms.md`` gives the reasons.
"""

import json
import math
from pathlib import Path
from typing import Any

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
from agent_r1.algorithms.aggregate import aggregate, loss_weights
from agent_r1.algorithms.episodes import AdvantageInputs
from agent_r1.algorithms.kl import AdaptiveKLController, kl_penalty
from agent_r1.algorithms.losses import (
    PolicyLossInputs,
    cispo,
    gspo,
    ppo,
    value_loss,
    with_regularisers,
)
from agent_r1.algorithms.off_policy import importance_weights, trusted_mask
from agent_r1.algorithms.stats import policy_stats

ORACLE = json.loads((Path(__file__).parent / "fixtures" / "oracle.json").read_text())
VERL, TRL = ORACLE["verl"], ORACLE["trl"]
DIFFERENCES = VERL["differences"]


def tensor(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


X = {name: tensor(value) for name, value in ORACLE["inputs"].items()}
MASK = X.pop("mask").bool()
GROUP = X.pop("group").long()


def close(actual: torch.Tensor | float, expected: Any, atol: float = 1e-6) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), tensor(expected), atol=atol, rtol=0)


def inputs(**overrides: torch.Tensor) -> AdvantageInputs:
    rows = len(MASK)
    given = {
        "loss_mask": MASK,
        "reward": X["reward"],
        "group_id": GROUP,
        "trajectory_id": torch.arange(rows),
        "segment": torch.zeros(rows, dtype=torch.int64),
        "turn_index": torch.where(MASK, 0, -1),
        "token_reward": X["penalty"],
        "values": X["values"],
        "greedy_reward": X["greedy"],
    }
    return AdvantageInputs(**(given | overrides))


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("gae gamma=1.0 lam=1.0", gae),
        ("gae gamma=0.97 lam=0.9", lambda x: gae(x, gamma=0.97, lam=0.9)),
        ("grpo", grpo),
        ("dr_grpo", dr_grpo),
        ("rloo", rloo),
        ("reinforce_plus_plus", lambda x: reinforce_plus_plus(x, gamma=0.95)),
        ("reinforce_plus_plus_baseline", reinforce_plus_plus_baseline),
        ("remax", remax),
    ],
)
def test_advantages_agree_with_verl(name, estimator):
    advantages, returns = VERL["advantages"][name]
    result = estimator(inputs())
    close(result.advantages, (tensor(advantages) * MASK).tolist())
    if result.returns is not None:
        close(result.returns, (tensor(returns) * MASK).tolist())


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("grpo scale=group", lambda x: grpo(x, epsilon=1e-4)),
        ("grpo scale=none", dr_grpo),
        ("rloo", rloo),
    ],
)
def test_advantages_agree_with_trl(name, estimator):
    rewards = tensor(TRL["advantages"]["rewards"])
    n = len(rewards)
    mask = torch.ones(n, 1, dtype=torch.bool)
    batch = AdvantageInputs(
        mask,
        rewards,
        torch.arange(n) // 4,
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n, 1, dtype=torch.int64),
    )
    close(estimator(batch).advantages[:, 0], TRL["advantages"][name])


LOSSES = {"vanilla": ppo, "gspo": gspo, "cispo": cispo}


@pytest.mark.parametrize("name", VERL["policy"])
def test_policy_losses_agree_with_verl(name):
    expected = VERL["policy"][name]
    loss, mode, *weighted = name.split()
    options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    if loss == "vanilla":
        options["clip_ratio_c"] = 1.5
    logprobs = X["logprobs"].clone().requires_grad_()
    given = PolicyLossInputs(
        logprobs, X["old_logprobs"], X["advantages"], MASK, X["weights"] if weighted else None
    )
    terms = LOSSES[loss](given, **options)
    value = aggregate(terms.loss, MASK, loss_weights(MASK, mode))
    close(value.detach(), expected["loss"])
    close(torch.autograd.grad(value, logprobs)[0], expected["gradient"])
    summary = policy_stats(given, terms).summary()
    theirs = {key.removeprefix("actor/"): v for key, v in expected["metrics"].items()}
    assert summary["ppo_kl"] == pytest.approx(theirs["ppo_kl"], abs=1e-6)
    assert summary["pg_clipfrac"] == pytest.approx(theirs["pg_clipfrac"], abs=1e-6)
    assert summary["pg_clipfrac_dual"] == pytest.approx(theirs["pg_clipfrac_lower"], abs=1e-6)


@pytest.mark.parametrize("name", TRL["losses"])
def test_policy_losses_agree_with_trl(name):
    expected = TRL["losses"][name]
    loss_type, level, beta = name.split()
    loss = cispo if loss_type == "cispo" else gspo if level == "sequence" else ppo
    options = {"clip_ratio_low": 1.0 if loss is cispo else 0.2, "clip_ratio_high": 0.28}
    if loss is ppo:
        options["clip_ratio_c"] = None
    mode = {"grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm"}.get(
        loss_type, "token-mean"
    )
    logprobs = X["logprobs"].clone().requires_grad_()
    advantages = X["advantages"][:, :1].expand(MASK.shape)
    terms = loss(PolicyLossInputs(logprobs, X["old_logprobs"], advantages, MASK), **options)
    kl = kl_penalty(logprobs, X["ref_logprobs"], "k3")
    per_token = with_regularisers(
        terms.loss, MASK, kl=kl, kl_loss_coef=float(beta.removeprefix("beta="))
    )
    value = aggregate(per_token, MASK, loss_weights(MASK, mode, divisor=64))
    close(value.detach(), expected["loss"])
    close(torch.autograd.grad(value, logprobs)[0], expected["gradient"])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_the_value_loss_agrees_with_verl(mode):
    expected = VERL["other"][f"value {mode}"]
    values = X["values"].clone().requires_grad_()
    terms = value_loss(values, X["old_values"], X["returns"], MASK, cliprange_value=0.5)
    value = aggregate(terms.loss, MASK, loss_weights(MASK, mode))
    close(value.detach(), expected["loss"])
    close(torch.autograd.grad(value, values)[0], expected["gradient"])
    share = float((terms.clipped & MASK).sum()) / int(MASK.sum())
    assert share == pytest.approx(expected["clipped"], abs=1e-6)


@pytest.mark.parametrize("name", [n for n in VERL["other"] if n.startswith("aggregate")])
def test_aggregation_agrees_with_verl(name):
    weights = loss_weights(MASK, name.removeprefix("aggregate "), divisor=64)
    close(aggregate(X["advantages"], MASK, weights), VERL["other"][name])


@pytest.mark.parametrize("name", [n for n in VERL["other"] if n.startswith("kl")])
def test_kl_estimators_agree_with_verl(name):
    expected = VERL["other"][name]
    logprobs = X["logprobs"].clone().requires_grad_()
    value = kl_penalty(logprobs, X["ref_logprobs"], name.removeprefix("kl "))
    close(value.detach(), expected["value"])
    close(torch.autograd.grad(value.sum(), logprobs)[0], expected["gradient"])


@pytest.mark.parametrize("name", VERL["off_policy"]["weights"])
def test_importance_weights_agree_with_verl(name):
    level, bounds = name.split()
    lower, _, upper = bounds.rpartition("_")
    options: dict[str, Any] = {"level": level, "upper": float(upper)}
    if lower:
        options |= {"mode": "mask", "lower": float(lower)}
    actual = importance_weights(X["old_logprobs"], X["rollout_logprobs"], MASK, **options)
    close(actual, VERL["off_policy"]["weights"][name])


@pytest.mark.parametrize(
    ("name", "level"),
    [("token_k1", "token"), ("seq_sum_k1", "sequence"), ("seq_mean_k1", "geometric")],
)
def test_trusted_masks_agree_with_verl_whose_bounds_are_of_the_inverse_ratio(name, level):
    actual = trusted_mask(
        X["old_logprobs"],
        X["rollout_logprobs"],
        MASK,
        level=level,
        lower=1 / 1.15,
        upper=1 / 0.9,
    )
    close(actual.double(), VERL["off_policy"]["keep"][name])
    assert 0 < actual.sum() < MASK.sum()


def test_the_adaptive_controller_agrees_with_verl():
    controller = AdaptiveKLController(0.2, target_kl=0.1, horizon=400)
    for kl, coef in zip(VERL["controller"]["kls"], VERL["controller"]["coefs"], strict=True):
        controller.update(kl, 64)
        assert controller.coef == pytest.approx(coef, abs=1e-12)


# --- where we differ on purpose -----------------------------------------------------------


@pytest.mark.parametrize(("name", "estimator"), [("grpo", grpo), ("rloo", rloo)])
def test_a_group_of_one_has_advantage_zero_and_not_its_raw_score(name, estimator, batch):
    theirs = DIFFERENCES["group of one"][name][0][1]
    assert theirs == pytest.approx(5.0, abs=1e-4)
    assert not estimator(batch([".0"], [5.0])).advantages.any()


def test_whitening_one_token_gives_zero_and_no_exception(batch):
    assert DIFFERENCES["whitening of one token"] == "ValueError"
    assert not reinforce_plus_plus(batch([".0"], [5.0])).advantages.any()


def test_a_reward_cannot_be_lost_on_a_trailing_tool_token(batch, same):
    assert DIFFERENCES["reward on a trailing tool token"] == [[0.0, 0.0, 0.0]]
    same(reinforce_plus_plus(batch(["00."], [5.0]), whiten=False).returns, [[5.0, 5.0, 0.0]])


def test_advantages_are_zero_outside_of_the_mask(batch):
    assert DIFFERENCES["gae outside of the mask"][0][2] != 0.0
    ours = gae(batch(["00."], [5.0], values=torch.zeros(1, 3).double())).advantages
    assert ours[0, 2] == 0.0


def test_an_empty_mask_gives_zero_and_not_nan():
    assert DIFFERENCES["token-mean of an empty mask"] == "nan"
    empty = torch.zeros(1, 2, dtype=torch.bool)
    assert aggregate(torch.ones(1, 2), empty, loss_weights(empty)).item() == 0.0


def test_k3_is_not_cut_at_ten_and_keeps_its_gradient():
    assert DIFFERENCES["k3 far away"] == [10.0]
    d = tensor([-5.0]).requires_grad_()
    k3 = kl_penalty(d, tensor([0.0]), "k3")
    k3.backward()
    assert k3.item() == pytest.approx(math.exp(5) - 6)
    assert d.grad.item() == pytest.approx(1 - math.exp(5))


def test_an_empty_row_is_absent_from_the_baseline_and_not_a_score_of_zero(batch, same):
    theirs = tensor(DIFFERENCES["empty row in a group"])[:, 1].tolist()
    assert theirs == pytest.approx([0.0, 1.0, 0.0])
    same(dr_grpo(batch([".0", ".0", ".."], [1.0, 2.0, 0.0])).advantages[:, 1], [-0.5, 0.5, 0.0])


def test_the_epsilon_of_grpo_is_smaller_than_trl_s():
    """Rewards that hardly differ are standardised all the same (verl has 1e-6 as well)."""
    rewards = tensor([0.0, 1e-4])
    mask = torch.ones(2, 1, dtype=torch.bool)
    zero = torch.zeros(2, dtype=torch.int64)
    x = AdvantageInputs(mask, rewards, zero, torch.arange(2), zero, zero[:, None])
    assert grpo(x).advantages[1].item() == pytest.approx(0.7, abs=0.02)
    assert grpo(x, epsilon=1e-4).advantages[1].item() == pytest.approx(0.29, abs=0.01)
