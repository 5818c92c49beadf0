"""Metrics of hand-made trajectories, by arithmetic on paper."""

import dataclasses

import pytest

from agent_r1.monitor.metrics import rollout_metrics, succeeded
from agent_r1.testing import make_trajectory
from agent_r1.types import Outcome, Reward


def scored(turns, value, *, group="g", outcome=Outcome.FINISHED, seconds=0.0, calls=None, **parts):
    made = make_trajectory(turns, outcome=outcome, calls=calls, prompt="pp")
    reward = None if value is None else Reward(value, parts)
    return dataclasses.replace(made, reward=reward, group_id=group, seconds=seconds)


@pytest.fixture
def metrics():
    return rollout_metrics(
        [
            scored([("aaaa", "oo"), "bb"], 1.0, seconds=1.0, accuracy=1.0),
            scored(["cc"], -1.0, seconds=3.0, accuracy=0.0, outcome=Outcome.LENGTH),
            scored([("d", "o"), ("e", "o")], 0.0, group="h", calls=[[True, False], [False]]),
            scored(["ffff"], None, group="h", outcome=Outcome.TURN_LIMIT),
            scored(["gggggggg"], None, group="h", outcome=Outcome.TOOL_ERROR),
        ]
    )


def test_rewards_are_those_of_scored_trajectories(metrics):
    assert metrics["critic/rewards/mean"] == 0.0
    assert metrics["critic/rewards/max"] == 1.0
    assert metrics["critic/rewards/min"] == -1.0
    assert metrics["critic/rewards/std"] == pytest.approx((2 / 3) ** 0.5)
    assert metrics["reward/accuracy/mean"] == 0.5
    assert metrics["rollout/success"] == pytest.approx(1 / 3)


def test_what_failed_or_could_not_be_scored_is_counted_and_is_no_zero(metrics):
    assert metrics["rollout/trajectories"] == 5
    assert metrics["rollout/failed"] == pytest.approx(1 / 5)
    assert metrics["rollout/unscored"] == pytest.approx(1 / 4)


def test_lengths_count_the_models_tokens_only(metrics):
    """6, 2, 2 and 4 tokens; the failed trajectory and the tools' tokens are not among them."""
    assert metrics["response_length/mean"] == 3.5
    assert metrics["response_length/max"] == 6
    assert metrics["response_length/min"] == 2
    assert metrics["response_length/clip_ratio"] == 0.25
    assert metrics["observation_length/mean"] == 1.0
    assert metrics["prompt_length/mean"] == 2
    assert metrics["num_turns/mean"] == 1.5


def test_tool_use(metrics):
    assert metrics["rollout/tool_call_share"] == 0.5
    assert metrics["tool/calls/mean"] == 1.0
    assert metrics["tool/success"] == 0.5


def test_every_outcome_has_its_share(metrics):
    assert metrics["outcome/finished"] == pytest.approx(2 / 5)
    assert metrics["outcome/length"] == pytest.approx(1 / 5)
    assert metrics["outcome/engine_error"] == 0
    assert sum(v for k, v in metrics.items() if k.startswith("outcome/")) == pytest.approx(1)


def test_groups_without_a_difference_are_counted(metrics):
    """Group g has 1 and -1, group h has a single scored member."""
    assert metrics["rollout/uniform_groups"] == 0.5


def test_seconds(metrics):
    assert metrics["rollout/seconds/mean"] == 1.0
    assert metrics["rollout/seconds/max"] == 3.0


def test_no_trajectories_have_no_metrics():
    assert rollout_metrics([]) == {}


def test_a_step_in_which_everything_failed_still_has_its_outcomes():
    failed = dataclasses.replace(make_trajectory([]), outcome=Outcome.ENGINE_ERROR)
    metrics = rollout_metrics([failed])
    assert metrics["rollout/failed"] == 1 and metrics["outcome/engine_error"] == 1
    assert "critic/rewards/mean" not in metrics and "response_length/mean" not in metrics


def test_without_calls_there_is_no_share_of_calls_that_succeed():
    assert "tool/success" not in rollout_metrics([make_trajectory(["a"])])


@pytest.mark.parametrize(
    ("value", "parts", "expected"),
    [(1.0, {}, True), (0.0, {}, False), (-0.5, {"accuracy": 1}, True), (2, {"accuracy": 0}, False)],
)
def test_success_is_the_accuracy_where_there_is_one(value, parts, expected):
    trajectory = dataclasses.replace(make_trajectory(["a"]), reward=Reward(value, parts))
    assert succeeded(trajectory) is expected
