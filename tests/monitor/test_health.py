"""Signs that a run goes wrong: found, told once, and not seen where there are none."""

import pytest

from agent_r1.monitor.health import CHECKS, WINDOW, HealthMonitor, findings

HEALTHY = {
    "actor/entropy": 0.4,
    "actor/pg_clipfrac": 0.02,
    "actor/ppo_kl": 0.001,
    "actor/kl_loss": 0.05,
    "response_length/clip_ratio": 0.01,
    "tool/success": 0.95,
    "rollout/uniform_groups": 0.3,
    "rollout/failed": 0.0,
    "training/logprob_diff_mean": 0.002,
}
OFF = {
    "entropy collapse": ("actor/entropy", 0.03, "from 0.400 to 0.030 nats"),
    "clip ratio": ("actor/pg_clipfrac", 0.4, "40% of the tokens"),
    "KL of a step": ("actor/ppo_kl", -0.2, "-0.200 nats per token"),
    "KL to the reference": ("actor/kl_loss", 1.5, "the reference is 1.50."),
    "truncation": ("response_length/clip_ratio", 0.5, "50% of the trajectories"),
    "tool errors": ("tool/success", 0.25, "only 25%"),
    "reward without spread": ("rollout/uniform_groups", 0.9, "in 90% of the groups"),
    "failed trajectories": ("rollout/failed", 0.2, "20% of the trajectories"),
    "engine and trainer differ": ("training/logprob_diff_mean", 0.1, "0.100 nats"),
}


def course(*changes):
    return [{"step": i} | HEALTHY | change for i, change in enumerate(changes, start=1)]


def test_every_check_has_a_case_here():
    assert set(OFF) == {check.name for check in CHECKS}


def test_a_healthy_run_raises_no_finding():
    assert findings(course(*[{}] * 40)) == []


@pytest.mark.parametrize("name", OFF)
def test_what_is_off_is_found_when_most_of_the_window_is_and_told_once(name):
    key, value, words = OFF[name]
    found = findings(course(*[{}] * 10, *[{key: value}] * 10))
    # of five values the median is bad from the third bad one on: steps 11, 12, 13
    assert [(step, finding.check) for step, finding in found] == [(13, name)]
    (_, finding) = found[0]
    assert (finding.metric, finding.value) == (key, value)
    assert finding.sentence.startswith(f"{name}: ") and words in finding.sentence


def test_one_odd_step_is_no_finding():
    assert findings(course(*[{}] * 6, {"tool/success": 0.0}, *[{}] * 6)) == []


def test_a_finding_that_went_away_is_told_again_when_it_comes_back():
    bad = {"tool/success": 0.1}
    found = findings(course(*[{}] * 5, *[bad] * 5, *[{}] * 5, *[bad] * 5))
    assert [step for step, _ in found] == [8, 18]


def test_steps_that_say_nothing_of_a_metric_change_nothing():
    monitor = HealthMonitor()
    bad, silent = {"tool/success": 0.1}, {"critic/rewards/mean": 1.0}
    told = [f for _ in range(WINDOW) for f in monitor.add(bad)]
    assert [f.check for f in told] == ["tool errors"]
    assert monitor.add(silent) == [] and monitor.add(bad) == []


def test_values_that_are_no_numbers_are_passed_over():
    nan = {"actor/entropy": float("nan")}
    assert findings(course(*[nan] * 10, *[{}] * 10)) == []


def test_a_policy_that_began_without_entropy_has_not_collapsed():
    low = {"actor/entropy": 0.01}
    assert findings(course(*[low] * 5, *[{"actor/entropy": 0.0001}] * 10)) == []


def test_weights_that_are_older_on_purpose_are_no_difference_of_engine_and_trainer():
    off = {"training/logprob_diff_mean": 0.1}
    stale = off | {"async/staleness/mean": 1.5}
    assert [f.check for _, f in findings(course(*[off] * 6))] == ["engine and trainer differ"]
    assert not findings(course(*[stale] * 6))
    fresh = off | {"async/staleness/mean": 0.0}
    assert len(findings(course(*[fresh] * 6))) == 1
