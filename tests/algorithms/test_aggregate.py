import math

import pytest
import torch

from agent_r1.algorithms.aggregate import Aggregation, aggregate, loss_weights
from agent_r1.errors import ConfigError

MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
LOSS = torch.tensor([[9.0, 1, 2, 3], [9, 8, 9, 9], [9, 9, 9, 9]], dtype=torch.float64)
MODES = [mode.value for mode in Aggregation]


def whole(mode: str, mask=MASK, loss=LOSS, **options) -> float:
    options.setdefault("divisor", 10.0)
    return aggregate(loss, mask, loss_weights(mask, mode, **options)).item()


@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("token-mean", 14 / 4),
        ("seq-mean-token-mean", (2 + 8) / 2),  # the empty row is no sequence
        ("seq-mean-token-sum", (6 + 8) / 2),
        ("seq-mean-token-sum-norm", (6 + 8) / 2 / 10),
    ],
)
def test_modes_by_hand(mode, value):
    assert whole(mode) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("mode", "value"),
    [
        ("token-mean", 14 / 4),
        ("seq-mean-token-mean", 14 / 4),  # both rows are one trajectory of 4 tokens
        ("seq-mean-token-sum", 14),
        ("seq-mean-token-sum-norm", 1.4),
    ],
)
def test_a_trajectory_of_several_rows_is_one_sequence(mode, value):
    ids = torch.tensor([5, 5, -1])
    assert whole(mode, trajectory_id=ids) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[2, 1], [0]], [[1, 0, 2]]])
def test_micro_batches_add_up_to_the_whole(mode, parts):
    weights = loss_weights(MASK, mode, divisor=10.0)
    total = sum(aggregate(LOSS[rows], MASK[rows], weights[rows]).item() for rows in parts)
    assert total == pytest.approx(whole(mode), abs=1e-12)


def test_means_of_micro_batch_means_are_what_must_not_come_back():
    rows = [LOSS[i][MASK[i]].mean().item() for i in (0, 1)]
    assert sum(rows) / 2 != pytest.approx(whole("token-mean"))


@pytest.mark.parametrize("mode", MODES)
def test_a_fully_masked_batch_is_zero_with_a_zero_gradient(mode):
    empty = torch.zeros_like(MASK)
    loss = torch.full(MASK.shape, math.nan, requires_grad=True)
    total = aggregate(loss, empty, loss_weights(empty, mode, divisor=10.0))
    total.backward()
    assert total.item() == 0.0 and not loss.grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_padding_rows_and_columns_change_nothing(mode):
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[:3, :4] = MASK
    loss = torch.full((5, 7), math.inf, dtype=torch.float64)
    loss[:3, :4] = LOSS
    assert whole(mode, mask, loss) == pytest.approx(whole(mode), abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_by_finite_differences(mode):
    weights = loss_weights(MASK, mode, divisor=10.0)
    loss = LOSS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aggregate(x, MASK, weights), loss)


def test_the_constant_divisor_is_required_and_positive():
    for divisor in (None, 0, -1.0):
        with pytest.raises(ConfigError, match="loss_scale_factor"):
            loss_weights(MASK, "seq-mean-token-sum-norm", divisor=divisor)


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ConfigError, match="seq-mean-token-mean"):
        loss_weights(MASK, "mean")


def test_low_precision_losses_are_weighted_in_their_own_dtype():
    loss = LOSS.to(torch.bfloat16)
    assert aggregate(loss, MASK, loss_weights(MASK)).dtype == torch.bfloat16
