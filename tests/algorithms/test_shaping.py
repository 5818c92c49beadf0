import math

import pytest

from agent_r1.algorithms.shaping import has_signal, overlong_penalty
from agent_r1.errors import ConfigError


@pytest.mark.parametrize(
    ("length", "penalty"),
    [(0, 0.0), (60, 0.0), (61, -0.025), (80, -0.5), (100, -1.0), (5000, -1.0)],
)
def test_the_overlong_penalty_by_hand(length, penalty):
    assert overlong_penalty(length, max_length=100, buffer=40) == pytest.approx(penalty)
    assert overlong_penalty(length, max_length=100, buffer=40, penalty_factor=0.5) == pytest.approx(
        penalty / 2
    )


@pytest.mark.parametrize("buffer", [0, -1, 101])
def test_the_buffer_lies_within_the_length(buffer):
    with pytest.raises(ConfigError, match="buffer"):
        overlong_penalty(5, max_length=100, buffer=buffer)


@pytest.mark.parametrize(
    ("metric", "signal"),
    [
        ([1.0, 1.0, 1.0], False),
        ([0.0, 0.0], False),
        ([0.0, 1.0], True),
        ([0.1 + 0.2, 0.3], False),  # equal but for rounding
        ([1.0], False),
        ([], False),
        ([0.0, math.nan], False),
    ],
)
def test_a_group_that_agrees_teaches_nothing(metric, signal):
    assert has_signal(metric) is signal


def test_shaping_must_not_make_a_hopeless_group_look_alive():
    """All wrong, of different lengths: the reward varies, the outcome metric does not."""
    accuracy = [0.0, 0.0, 0.0]
    shaped = [overlong_penalty(n, max_length=100, buffer=50) for n in (10, 70, 100)]
    assert has_signal(shaped) and not has_signal(accuracy)
