import math

import pytest
import torch

from agent_r1.algorithms.masked import (
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
    zero_outside,
)

NAN, INF = math.nan, math.inf
VALUES = torch.tensor([[1.0, NAN, 3.0], [INF, 5.0, -INF]])
MASK = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.bool)


def test_what_is_masked_is_never_read(same):
    same(masked_sum(VALUES, MASK), 9.0)
    same(masked_sum(VALUES, MASK, 1), [4.0, 5.0])
    same(masked_mean(VALUES, MASK), 3.0)
    same(masked_var(VALUES, MASK), 4.0)
    same(masked_whiten(VALUES, MASK), [[-1.0, 0, 0], [0, 1.0, 0]], atol=1e-6)


def test_masks_may_be_numbers(same):
    same(masked_mean(VALUES, MASK.float()), 3.0)
    same(masked_mean(VALUES, MASK.long(), 1), [2.0, 5.0])


def test_an_empty_mask_gives_zero_and_no_nan(same):
    empty = torch.zeros(2, 3, dtype=torch.bool)
    same(masked_mean(VALUES, empty), 0.0)
    same(masked_mean(VALUES, empty, 1), [0.0, 0.0])
    same(masked_var(VALUES, empty), 0.0)
    same(masked_whiten(VALUES, empty), torch.zeros(2, 3))


def test_one_element_has_no_spread_and_whitens_to_zero(same):
    one = torch.tensor([[True, False, False], [False, False, False]])
    same(masked_whiten(VALUES, one), torch.zeros(2, 3))


def test_a_masked_nan_does_not_reach_the_gradient(same):
    values = VALUES.clone().requires_grad_()
    masked_sum(values.square(), MASK).backward()
    same(zero_outside(values.grad, MASK), [[2.0, 0, 6.0], [0, 10.0, 0]])
    # What multiplying by the mask would have given:
    assert (VALUES.square() * MASK).sum().isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert zero_outside(VALUES.to(dtype), MASK).dtype == dtype
    assert masked_whiten(VALUES.to(dtype), MASK).dtype == dtype
