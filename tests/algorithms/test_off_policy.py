import math

import pytest
import torch

from agent_r1.algorithms.off_policy import importance_weights, trusted_mask
from agent_r1.errors import ConfigError

MASK = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
RATIO = torch.tensor([[9, 1.5, 4.0, 0.25], [0.5, 9, 9, 9], [9, 9, 9, 9]], dtype=torch.float64)
ROLLOUT = torch.full((3, 4), -1.0, dtype=torch.float64)
OLD = ROLLOUT + RATIO.log()


def weights(**options):
    return importance_weights(OLD, ROLLOUT, MASK, **options)


def test_truncated_by_token(same):
    same(weights(), [[0, 1.5, 2.0, 0.25], [0.5, 0, 0, 0], [0, 0, 0, 0]])
    same(weights(upper=3.0)[0], [0, 1.5, 3.0, 0.25])


def test_masked_by_token(same):
    same(weights(mode="mask", lower=0.3, upper=2.0), [[0, 1.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]])


def test_by_sequence_is_the_product(same):
    same(
        weights(level="sequence", upper=5.0),
        [[0, 1.5, 1.5, 1.5], [0.5, 0, 0, 0], [0, 0, 0, 0]],
    )
    same(weights(level="sequence", upper=1.2)[0], [0, 1.2, 1.2, 1.2])
    same(weights(level="sequence", mode="mask", lower=0.6, upper=2.0)[1], [0, 0, 0, 0])


def test_by_geometric_mean(same):
    root = 1.5 ** (1 / 3)
    same(weights(level="geometric"), [[0, root, root, root], [0.5, 0, 0, 0], [0, 0, 0, 0]])


def test_segments_of_one_trajectory_are_one_sequence(same):
    ids = torch.tensor([3, 3, -1])
    same(weights(level="sequence", trajectory_id=ids)[:2, 1], [0.75, 0])
    same(weights(level="sequence", trajectory_id=ids)[1], [0.75, 0, 0, 0])
    same(weights(level="geometric", trajectory_id=ids)[1, 0], 0.75**0.25)


def test_the_same_policy_has_weight_one(same):
    for level in ("token", "sequence", "geometric"):
        for mode in ("truncate", "mask"):
            ones = importance_weights(OLD, OLD, MASK, level=level, mode=mode)
            same(ones, MASK.double())


def test_weights_carry_no_gradient_and_ignore_masked_poison(same):
    poison = torch.full_like(OLD, math.nan)
    old = torch.where(MASK, OLD, poison).requires_grad_()
    rollout = torch.where(MASK, ROLLOUT, math.inf * torch.ones_like(OLD))
    for level in ("token", "sequence", "geometric"):
        result = importance_weights(old, rollout, MASK, level=level)
        assert not result.requires_grad
        same(result, weights(level=level))


def test_absurd_differences_stay_finite():
    far = torch.tensor([[1e5, -1e5]])
    zero, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for level in ("token", "sequence", "geometric"):
        for mode in ("truncate", "mask"):
            result = importance_weights(far, zero, mask, level=level, mode=mode)
            assert result.isfinite().all() and (result <= 2.0).all()


def test_trusted_mask_by_hand():
    keep = trusted_mask(OLD, ROLLOUT, MASK, level="token", lower=0.4, upper=2.0)
    assert keep.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    keep = trusted_mask(OLD, ROLLOUT, MASK, level="geometric", lower=0.9, upper=1.2)
    assert keep.int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    keep = trusted_mask(OLD, ROLLOUT, MASK, level="sequence", lower=0.0, upper=1.0)
    assert keep.int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "options",
    [{"level": "tokens"}, {"mode": "clip"}, {"upper": 0.5}, {"lower": 1.5}, {"lower": -1.0}],
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        weights(**options)


def test_the_bounds_of_the_trusted_region_are_checked():
    with pytest.raises(ConfigError, match="lower"):
        trusted_mask(OLD, ROLLOUT, MASK, lower=1.1, upper=1.2)


def test_token_weights_make_the_engine_s_samples_unbiased_for_the_trainer():
    """E_rollout[w f] = E_old[f], exactly, when nothing is truncated."""
    old = torch.log_softmax(torch.tensor([0.1, 0.9, -0.4]).double(), 0)
    rollout = torch.log_softmax(torch.tensor([0.3, 0.5, 0.0]).double(), 0)
    f = torch.tensor([1.0, -2.0, 5.0]).double()
    w = importance_weights(
        old[:, None], rollout[:, None], torch.ones(3, 1, dtype=torch.bool), upper=100.0
    )[:, 0]
    assert (rollout.exp() * w * f).sum().item() == pytest.approx((old.exp() * f).sum().item())
