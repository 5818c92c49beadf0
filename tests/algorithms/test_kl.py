import math

import pytest
import torch

from agent_r1.algorithms.kl import (
    AdaptiveKLController,
    FixedKLController,
    kl_penalty,
    kl_reward,
    make_kl_controller,
)
from agent_r1.errors import ConfigError

D = torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)
VALUE = {
    "k1": [0.0, 0.5, -1.0],
    "k2": [0.0, 0.125, 0.5],
    "k3": [0.0, math.exp(-0.5) - 0.5, math.exp(1.0) - 2.0],
    "abs": [0.0, 0.5, 1.0],
}


@pytest.mark.parametrize("kind", VALUE)
def test_estimators_by_hand(kind, same):
    same(kl_penalty(D, ZERO, kind), VALUE[kind])
    same(kl_penalty(D, ZERO, kind + "+"), VALUE[kind])


@pytest.mark.parametrize(("alias", "kind"), [("kl", "k1"), ("mse", "k2"), ("low_var_kl", "k3")])
def test_the_names_of_the_wider_world(alias, kind, same):
    same(kl_penalty(D, ZERO, alias), VALUE[kind])


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_gradients_by_finite_differences(kind):
    d = D.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_penalty(x, ZERO, kind), d)


@pytest.mark.parametrize("kind", ["k1+", "k3+", "abs+"])
def test_straight_through_has_the_gradient_of_k2(kind, same):
    d = D.clone().requires_grad_()
    kl_penalty(d, ZERO, kind).sum().backward()
    same(d.grad, D)


LOGITS = torch.tensor([0.3, -0.4, 1.1, 0.0], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([0.0, 0.5, 0.2, -0.7], dtype=torch.float64), 0)


def expected(kind: str) -> tuple[float, torch.Tensor]:
    """Exact expectation over all tokens of the estimate and of its gradient."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    per_token = kl_penalty(logprobs, REFERENCE, kind)
    weight = logprobs.exp().detach()
    gradient = torch.autograd.grad((weight * per_token).sum(), logits)[0]
    return float((weight * per_token).sum().detach()), gradient


def true_kl() -> tuple[float, torch.Tensor]:
    logits = LOGITS.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    kl = (logprobs.exp() * (logprobs - REFERENCE)).sum()
    return float(kl.detach()), torch.autograd.grad(kl, logits)[0]


@pytest.mark.parametrize("kind", ["k1", "k3", "k1+", "k3+"])
def test_k1_and_k3_are_unbiased_estimates_of_kl(kind):
    assert expected(kind)[0] == pytest.approx(true_kl()[0], abs=1e-12)


@pytest.mark.parametrize("kind", ["k2", "k1+", "k3+"])
def test_as_a_loss_these_have_the_gradient_of_kl(kind, same):
    same(expected(kind)[1], true_kl()[1])


def test_as_a_loss_k1_teaches_nothing_and_k3_something_else(same):
    same(expected("k1")[1], torch.zeros(4))
    assert (expected("k3")[1] - true_kl()[1]).abs().max() > 0.01


def test_k3_is_never_negative_and_never_overflows():
    d = torch.tensor([-1e4, -50.0, -1e-8, 1e-8, 50.0, 1e4])
    k3 = kl_penalty(d, torch.zeros(6), "k3")
    assert k3.isfinite().all() and (k3 >= 0).all()


def test_k3_keeps_small_differences_that_subtraction_would_lose():
    d = torch.tensor([1e-3], dtype=torch.float32)
    assert kl_penalty(d, torch.zeros(1), "k3").item() == pytest.approx(4.998e-7, rel=1e-2)


def test_the_reference_gets_no_gradient():
    ref = ZERO.clone().requires_grad_()
    kl_penalty(D.clone().requires_grad_(), ref, "k3").sum().backward()
    assert ref.grad is None


def test_an_unknown_estimator_is_an_error():
    with pytest.raises(ConfigError, match="low_var_kl"):
        kl_penalty(D, ZERO, "k4")


def test_kl_as_a_reward_touches_action_tokens_only(same):
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    new = torch.tensor([[math.nan, 1.0, 3.0], [5, math.inf, 4.0], [1, 1, 1]]).double()
    result = kl_reward(new, torch.ones(3, 3).double(), mask, coef=0.1)
    same(result.token_reward, [[0, 0, -0.2], [0, 0, -0.3], [0, 0, 0]])
    assert result.mean_kl == pytest.approx((1.0 + 3.0) / 2)  # the empty row does not count


def test_kl_as_a_reward_of_nothing_is_nothing():
    empty = torch.zeros(2, 3, dtype=torch.bool)
    result = kl_reward(torch.full((2, 3), math.nan), torch.zeros(2, 3), empty, coef=0.1)
    assert result.mean_kl == 0.0 and not result.token_reward.any()


def test_the_adaptive_controller_by_hand():
    controller = AdaptiveKLController(kl_coef=0.1, target_kl=2.0, horizon=100)
    controller.update(2.2, n_steps=10)  # error 0.1
    assert controller.coef == pytest.approx(0.1 * 1.01)
    controller.update(40.0, n_steps=10)  # error capped at 0.2
    assert controller.coef == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(0.0, n_steps=10)
    assert controller.coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_a_resumed_controller_continues_where_it_was():
    kls = [0.3, 0.01, 0.2, 0.5, 0.04, 0.11]
    straight = AdaptiveKLController(kl_coef=0.1, target_kl=0.1, horizon=50)
    for kl in kls:
        straight.update(kl, 8)
    first = AdaptiveKLController(kl_coef=0.1, target_kl=0.1, horizon=50)
    for kl in kls[:3]:
        first.update(kl, 8)
    second = make_kl_controller("adaptive", kl_coef=0.1, target_kl=0.1, horizon=50)
    second.load_state_dict(first.state_dict())
    for kl in kls[3:]:
        second.update(kl, 8)
    assert second.coef == straight.coef != 0.1


def test_the_fixed_controller_stays():
    controller = make_kl_controller("fixed", kl_coef=0.05)
    assert isinstance(controller, FixedKLController)
    controller.update(100.0, 1)
    assert controller.coef == 0.05 and controller.state_dict() == {"coef": 0.05}


def test_controllers_are_checked():
    with pytest.raises(ConfigError, match="adaptive"):
        make_kl_controller("adaptve")
    with pytest.raises(ConfigError, match="positive"):
        make_kl_controller("adaptive", horizon=0)
