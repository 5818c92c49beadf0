"""Estimates: values by hand and by counting."""

import itertools
import random

import pytest

from agent_r1.trainer.estimates import bootstrap, majority, pass_at_k


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 1, 2), (5, 2, 3), (6, 0, 2), (3, 3, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, correct, k):
    samples = [i < correct for i in range(n)]
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_what_it_cannot_estimate():
    for n, correct, k in [(2, 1, 3), (2, 3, 1), (2, 1, 0)]:
        with pytest.raises(ValueError, match="needs"):
            pass_at_k(n, correct, k)


def test_a_majority_ignores_silence_and_prefers_the_first_of_equals():
    assert majority(["7", None, "8", "8", None, None, None]) == "8"
    assert majority(["7", "8"]) == "7"
    assert majority([None]) is None


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    draw = random.Random(0)
    covered = 0
    for seed in range(200):
        values = [float(draw.random() < 0.3) for _ in range(60)]
        estimate = bootstrap(values, resamples=300, seed=seed)
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_values_have_no_spread_and_no_values_are_refused():
    assert bootstrap([1.0, 1.0]) == bootstrap([1.0, 1.0])
    assert (bootstrap([1.0] * 5).low, bootstrap([1.0] * 5).high) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
