"""Records: masks from turn structure, and what a record refuses."""

import math
from dataclasses import replace

import pytest

from agent_r1.errors import RecordError
from agent_r1.types import (
    Completion,
    Finish,
    Outcome,
    Reward,
    SamplingParams,
    Task,
    TrainSample,
    Trajectory,
    Turn,
)

EOS = 2


def turn(prompt, ids, observation=(), finish=Finish.STOP):
    logprobs = tuple(-0.1 * i for i in ids)
    return Turn(tuple(prompt), Completion(tuple(ids), logprobs, finish), "", tuple(observation))


def trajectory(*turns, outcome=Outcome.FINISHED):
    return Trajectory(Task("t", "p"), "g", 0, turns, outcome)


def test_turns_that_extend_each_other_become_one_sample():
    first = turn([10, 11], [20, 21], [30, 31, 32])
    second = turn(first.next_prompt_ids, [22, EOS], finish=Finish.EOS)
    (sample,) = trajectory(first, second).samples()
    assert sample.token_ids == (10, 11, 20, 21, 30, 31, 32, 22, EOS)
    assert sample.loss_mask == (0, 0, 1, 1, 0, 0, 0, 1, 1)
    assert sample.turn_index == (-1, -1, 0, 0, -1, -1, -1, 1, 1)
    expected = (0, 0, -2.0, -2.1, 0, 0, 0, -2.2, -0.2)
    assert sample.behavior_logprobs == pytest.approx(expected)


def test_every_sampled_token_knows_the_version_that_wrote_it():
    first = turn([10, 11], [20, 21, 22], [30])
    first = replace(first, completion=replace(first.completion, versions=((0, 4), (1, 6))))
    second = turn(first.next_prompt_ids, [23, EOS], finish=Finish.EOS)
    second = replace(second, completion=replace(second.completion, versions=((0, 7),)))
    (sample,) = trajectory(first, second).samples()
    assert sample.versions == (-1, -1, 4, 6, 6, -1, 7, 7)
    assert first.completion.policy_version == 6


def test_a_completion_that_is_cut_keeps_the_versions_of_what_is_left():
    whole = Completion((1, 2, 3, 4), (-0.1, -0.2, -0.3, -0.4), Finish.LENGTH, ((0, 1), (2, 5)))
    assert whole.cut(3, Finish.STOP, "x") == Completion(
        (1, 2, 3), (-0.1, -0.2, -0.3), Finish.STOP, ((0, 1), (2, 5)), "x"
    )
    assert whole.cut(2, Finish.STOP).versions == ((0, 1),)
    assert whole.cut(0, Finish.STOP).versions == ((0, 1),)


def test_an_eos_that_equals_the_padding_token_is_still_an_action():
    (sample,) = trajectory(turn([5], [EOS, EOS], finish=Finish.EOS)).samples()
    assert sample.loss_mask == (0, 1, 1)


def test_the_observation_after_the_last_action_is_not_trained_on_or_carried():
    (sample,) = trajectory(turn([1], [2, 3], [4, 5, 6]), outcome=Outcome.TURN_LIMIT).samples()
    assert sample.token_ids == (1, 2, 3)


def test_edited_history_begins_a_new_sample_with_the_context_that_was_acted_on():
    first = turn([1], [2, 3], [4])
    second = turn([1, 9, 4], [5])  # the environment rewrote what came before
    third = turn(second.next_prompt_ids, [6])
    one, two = trajectory(first, second, third).samples()
    assert one.token_ids == (1, 2, 3)
    assert two.token_ids == (1, 9, 4, 5, 6)
    assert two.loss_mask == (0, 0, 0, 1, 1)
    assert two.turn_index == (-1, -1, -1, 1, 2)


def test_a_trajectory_without_turns_has_no_sample():
    assert trajectory(outcome=Outcome.CONTEXT).samples() == ()


def test_lengths_count_what_the_model_wrote():
    first = turn([1] * 50, [2, 3], [4] * 100)
    assert trajectory(first, turn(first.next_prompt_ids, [5])).response_length == 3


def test_outcomes_are_exactly_one_of_finished_truncated_and_failed():
    for outcome in Outcome:
        assert [outcome.terminated, outcome.truncated, outcome.failed].count(True) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda: Completion((1, 2), (0.0,), Finish.EOS),
        lambda: Completion((1, 2), None, Finish.EOS, ()),
        lambda: Completion((1, 2), None, Finish.EOS, ((1, 0),)),
        lambda: Completion((1, 2), None, Finish.EOS, ((0, 0), (2, 1))),
        lambda: Completion((1, 2, 3), None, Finish.EOS, ((0, 0), (2, 1), (1, 2))),
        lambda: TrainSample((1, 2), (0,), (0.0, 0.0), (-1, -1), (0, 0)),
        lambda: TrainSample((1, 2), (0, 1), (0.0, 0.0), (-1, -1), (0,)),
        lambda: Reward(math.nan),
        lambda: Reward(1.0, {"format": math.inf}),
        lambda: Reward(1.0, per_turn=(math.nan,)),
        lambda: SamplingParams(0),
        lambda: SamplingParams(1, temperature=-1.0),
        lambda: SamplingParams(1, top_p=0.0),
    ],
)
def test_contradictory_records_are_refused(build):
    with pytest.raises(RecordError):
        build()
