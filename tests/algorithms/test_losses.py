"""Values worked by hand, finite differences, and what masked or absurd numbers may not do."""

import dataclasses
import math

import pytest
import torch

from agent_r1.algorithms.losses import (
    PolicyLossInputs,
    cispo,
    gspo,
    ppo,
    reinforce,
    value_loss,
    with_regularisers,
)
from agent_r1.errors import ConfigError

LOSSES = [ppo, gspo, cispo, reinforce]
MASK = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)


def one(log_ratio: float, advantage: float, logprob: float = -1.0) -> PolicyLossInputs:
    """A single token with this log-ratio."""
    new = torch.tensor([[logprob]], dtype=torch.float64, requires_grad=True)
    return PolicyLossInputs(
        new,
        new.detach() - log_ratio,
        torch.tensor([[advantage]], dtype=torch.float64),
        torch.tensor([[True]]),
    )


def random_inputs(seed: int = 0) -> PolicyLossInputs:
    g = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.randn(MASK.shape, generator=g, dtype=torch.float64)

    new = -draw().abs()
    return PolicyLossInputs(new.requires_grad_(), new.detach() + 0.3 * draw(), draw(), MASK)


RATIO = {"up": 1.5, "down": 0.5, "near": 1.1}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, ""),
        (1.5, 2.0, -2.56, 0.0, "high"),  # 1 + 0.28
        (0.5, 2.0, -1.0, -1.0, ""),  # the bad side is not clipped
        (1.1, -2.0, 2.2, 2.2, ""),
        (0.5, -2.0, 1.6, 0.0, "low"),  # 1 - 0.2
        (1.5, -2.0, 3.0, 3.0, ""),
        (5.0, -2.0, 6.0, 0.0, "dual"),  # 3 * 2
    ],
)
def test_ppo_by_hand(ratio, advantage, loss, gradient, clipped):
    inputs = one(math.log(ratio), advantage)
    terms = ppo(inputs, clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=3.0)
    terms.loss.sum().backward()
    assert terms.loss.item() == pytest.approx(loss)
    assert inputs.logprobs.grad.item() == pytest.approx(gradient)
    assert terms.ratio.item() == pytest.approx(ratio)
    flags = {"low": terms.clipped_low, "high": terms.clipped_high, "dual": terms.clipped_dual}
    assert {name for name, flag in flags.items() if flag.item()} == ({clipped} - {""})


def test_the_dual_clip_can_be_widened_or_switched_off():
    inputs = one(math.log(8.0), -1.0)
    assert ppo(inputs).loss.item() == pytest.approx(3.0)
    assert ppo(inputs, clip_ratio_c=10.0).loss.item() == pytest.approx(8.0)
    assert ppo(inputs, clip_ratio_c=None).loss.item() == pytest.approx(8.0)
    with pytest.raises(ConfigError, match="clip_ratio_c"):
        ppo(inputs, clip_ratio_c=1.0)


def test_clip_higher_lets_rare_tokens_grow_further():
    inputs = one(math.log(1.25), 1.0)
    assert ppo(inputs, clip_ratio_high=0.2).loss.item() == pytest.approx(-1.2)
    assert ppo(inputs, clip_ratio_high=0.28).loss.item() == pytest.approx(-1.25)


@pytest.mark.parametrize("name", ["clip_ratio_low", "clip_ratio_high"])
@pytest.mark.parametrize("loss", [ppo, gspo, cispo])
def test_bounds_are_distances(loss, name):
    with pytest.raises(ConfigError, match=name):
        loss(one(0.0, 1.0), **{name: -0.1})


def test_gspo_by_hand():
    # log-ratios of row 0: 0.2, -0.1, 0.5 -> mean 0.2; every token has the ratio e^0.2.
    new = torch.full((2, 5), -1.0, dtype=torch.float64, requires_grad=True)
    log_ratio = torch.tensor([[9, 0.2, -0.1, 9, 0.5], [9, -0.3, 9, 9, 9]], dtype=torch.float64)
    advantages = torch.tensor([[1.0], [-2.0]], dtype=torch.float64).expand(2, 5)
    inputs = PolicyLossInputs(new, new.detach() - log_ratio, advantages, MASK[:2])
    terms = gspo(inputs, clip_ratio_low=0.5, clip_ratio_high=0.5)
    assert terms.loss[MASK[:2]].tolist() == pytest.approx(
        [-math.exp(0.2)] * 3 + [2 * math.exp(-0.3)]
    )
    # The gradient is that of the sequence: each token's log-probability, weighted equally.
    (terms.loss * MASK[:2]).sum().backward()
    assert new.grad[MASK[:2]].tolist() == pytest.approx([-math.exp(0.2)] * 3 + [2 * math.exp(-0.3)])
    narrow = gspo(inputs, clip_ratio_low=3e-4, clip_ratio_high=4e-4)
    assert narrow.clipped_high[0, 1] and narrow.clipped_low[1, 1]
    assert narrow.loss[0, 1].item() == pytest.approx(-1.0004)


@pytest.mark.parametrize(("ratio", "weight"), [(1.1, 1.1), (1.5, 1.2), (0.5, 0.8)])
def test_cispo_by_hand(ratio, weight):
    inputs = one(math.log(ratio), 2.0, logprob=-0.7)
    terms = cispo(inputs, clip_ratio_low=0.2, clip_ratio_high=0.2)
    terms.loss.sum().backward()
    assert terms.loss.item() == pytest.approx(weight * 2.0 * 0.7)
    assert inputs.logprobs.grad.item() == pytest.approx(-weight * 2.0)  # never 0


def test_cispo_has_no_lower_bound_by_default():
    assert not cispo(one(-9.0, 1.0)).clipped_low.any()
    assert cispo(one(-9.0, 1.0), clip_ratio_low=0.2).clipped_low.all()


def test_on_policy_all_losses_have_the_gradient_of_reinforce():
    def gradient(loss):
        inputs = random_inputs()
        on_policy = dataclasses.replace(inputs, old_logprobs=inputs.logprobs.detach())
        (loss(on_policy).loss * MASK).sum().backward()
        return inputs.logprobs.grad

    for loss in LOSSES:
        torch.testing.assert_close(gradient(loss), -random_inputs().advantages * MASK)


@pytest.mark.parametrize("weighted", [False, True])
def test_ppo_gradient_by_finite_differences(weighted):
    inputs = random_inputs(1)
    if weighted:
        inputs = dataclasses.replace(inputs, weights=inputs.advantages.abs())

    def loss(logprobs):
        return ppo(dataclasses.replace(inputs, logprobs=logprobs)).loss

    assert torch.autograd.gradcheck(loss, inputs.logprobs)


def test_reinforce_gradient_by_finite_differences():
    inputs = random_inputs(2)
    assert torch.autograd.gradcheck(
        lambda logprobs: reinforce(dataclasses.replace(inputs, logprobs=logprobs)).loss,
        inputs.logprobs,
    )


def test_gspo_gradient_is_that_of_the_sequence_objective():
    """The token form's gradient, summed, is the finite difference of mean-token GSPO."""
    inputs = random_inputs(3)
    inputs = dataclasses.replace(inputs, advantages=inputs.advantages[:, :1].expand(3, 5))
    lengths = MASK.sum(1).clamp(min=1)
    mask = MASK.double()

    def objective(logprobs):
        """GSPO eq. 5, written out per sequence."""
        log_s = ((logprobs - inputs.old_logprobs) * mask).sum(1) / lengths
        s, a = log_s.exp(), inputs.advantages[:, 0]
        return torch.maximum(-a * s, -a * s.clamp(0.9, 1.1)) * (MASK.sum(1) > 0)

    assert torch.autograd.gradcheck(objective, inputs.logprobs)
    expected = torch.autograd.grad(objective(inputs.logprobs).sum(), inputs.logprobs)[0]
    terms = gspo(inputs, clip_ratio_low=0.1, clip_ratio_high=0.1)
    total = ((terms.loss * mask).sum(1) / lengths).sum()
    actual = torch.autograd.grad(total, inputs.logprobs)[0]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(total, objective(inputs.logprobs).sum())


def test_cispo_gradient_by_finite_differences_of_a_frozen_weight():
    inputs = random_inputs(4)
    ratio = (inputs.logprobs - inputs.old_logprobs).exp().detach().clamp(0.8, 1.2)

    def frozen(logprobs):
        return -ratio * inputs.advantages * logprobs * MASK

    assert torch.autograd.gradcheck(frozen, inputs.logprobs)
    expected = torch.autograd.grad(frozen(inputs.logprobs).sum(), inputs.logprobs)[0]
    loss = cispo(inputs, clip_ratio_low=0.2, clip_ratio_high=0.2).loss
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), inputs.logprobs)[0], expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_poison_at_masked_tokens_reaches_neither_value_nor_gradient(loss, poison):
    clean = random_inputs(5)
    clean_loss = loss(clean).loss.sum()
    clean_gradient = torch.autograd.grad(clean_loss, clean.logprobs)[0]
    bad = torch.full_like(clean.advantages, poison)
    logprobs = torch.where(MASK, clean.logprobs.detach(), bad).requires_grad_()
    dirty = PolicyLossInputs(
        logprobs,
        torch.where(MASK, clean.old_logprobs, -bad),
        torch.where(MASK, clean.advantages, bad),
        MASK,
        torch.where(MASK, torch.ones_like(bad), bad),
    )
    terms = loss(dirty)
    gradient = torch.autograd.grad(terms.loss.sum(), logprobs)[0]
    torch.testing.assert_close(terms.loss.sum(), clean_loss)
    torch.testing.assert_close(gradient, clean_gradient)
    assert not terms.loss[~MASK].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fully_masked_batch_costs_nothing(loss):
    inputs = dataclasses.replace(random_inputs(), loss_mask=torch.zeros_like(MASK))
    terms = loss(inputs)
    terms.loss.sum().backward()
    assert terms.loss.abs().sum() == 0 and not inputs.logprobs.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gap", [100.0, -100.0, 1e6])
def test_absurd_ratios_stay_finite(loss, gap):
    for advantage in (1.0, -1.0):
        inputs = one(gap, advantage)
        terms = loss(inputs)
        terms.loss.sum().backward()
        assert terms.loss.isfinite().all() and inputs.logprobs.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_reaches_anything_but_the_new_logprobs(loss):
    inputs = random_inputs()
    old = inputs.old_logprobs.clone().requires_grad_()
    advantages = inputs.advantages.clone().requires_grad_()
    weights = torch.ones_like(old).requires_grad_()
    watched = PolicyLossInputs(inputs.logprobs, old, advantages, MASK, weights)
    loss(watched).loss.sum().backward()
    assert old.grad is None and advantages.grad is None and weights.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_scale_loss_and_gradient_per_token(loss, same):
    inputs = random_inputs(6)
    weights = torch.rand(MASK.shape, generator=torch.Generator().manual_seed(1)).double()
    plain = loss(inputs).loss
    weighted = loss(dataclasses.replace(inputs, weights=weights)).loss
    same(weighted, plain.detach() * weights)


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 2.0, 0.0, math.nan]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0, 1.9, 1.0, math.inf]], dtype=torch.float64)
    returns = torch.tensor([[2.0, 0.0, 3.0, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    terms = value_loss(values, old, returns, mask, cliprange_value=0.5)
    # Token 0: clipped to 0.5 -> 2.25 > 1. Token 1: 4 = 4. Token 2: clipped to 0.5 -> 6.25 < 9.
    assert terms.loss.tolist() == [[1.125, 2.0, 4.5, 0.0]]
    assert terms.clipped.tolist() == [[True, False, False, False]]
    terms.loss.sum().backward()
    assert values.grad.tolist() == [[0.0, 2.0, -3.0, 0.0]]
    plain = value_loss(values, old, returns, mask, cliprange_value=None)
    assert plain.loss.tolist() == [[0.5, 2.0, 4.5, 0.0]]


def test_value_loss_gradient_by_finite_differences():
    g = torch.Generator().manual_seed(0)
    values, old, returns = (torch.randn(3, 5, generator=g).double() for _ in range(3))
    values.requires_grad_()
    for clip in (0.5, None):
        assert torch.autograd.gradcheck(
            lambda v, c=clip: value_loss(v, old, returns, MASK, cliprange_value=c).loss, values
        )


def test_regularisers_by_hand_and_by_finite_differences():
    g = torch.Generator().manual_seed(0)
    loss, kl, entropy = (torch.randn(3, 5, generator=g).double().requires_grad_() for _ in range(3))

    def total(loss, kl, entropy):
        return with_regularisers(
            loss, MASK, kl=kl, kl_loss_coef=0.1, entropy=entropy, entropy_coeff=0.01
        )

    torch.testing.assert_close(total(loss, kl, entropy), loss + (0.1 * kl - 0.01 * entropy) * MASK)
    assert torch.autograd.gradcheck(total, (loss, kl, entropy))


def test_a_regulariser_that_is_off_costs_nothing():
    loss = torch.ones(3, 5)
    assert with_regularisers(loss, MASK) is loss
    assert with_regularisers(loss, MASK, kl=loss, entropy=loss) is loss


def test_an_entropy_bonus_lowers_the_loss_and_poison_outside_the_mask_is_ignored():
    entropy = torch.where(MASK, 2.0, math.nan)
    total = with_regularisers(torch.zeros(3, 5), MASK, entropy=entropy, entropy_coeff=0.5)
    assert total.sum().item() == pytest.approx(-4.0)


def test_a_value_within_the_range_does_not_count_as_clipped_by_a_rounding_error():
    g = torch.Generator().manual_seed(0)
    values, old, returns = (torch.randn(1, 10_000, generator=g) for _ in range(3))
    near = (values - old).abs() < 0.49
    terms = value_loss(values, old, returns, near, cliprange_value=0.5)
    assert not terms.clipped[near].any()
    naive = old + (values - old).clamp(-0.5, 0.5)
    assert (naive != values)[near].any(), "the trap is set"
