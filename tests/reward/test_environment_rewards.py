"""Rewards of environments: alone, beside others, and rewards that read the final state."""

import asyncio

import pytest

from agent_r1.errors import AgentR1Error, RewardError
from agent_r1.reward.base import make_reward
from agent_r1.reward.builtin import check_ingredients
from agent_r1.reward.grader import Grader
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn


def trajectory(*rewards, state=None, text="\\boxed{four}"):
    turns = tuple(
        Turn((1,), Completion((2,), (-0.5,), Finish.EOS), text, reward=reward) for reward in rewards
    )
    task = Task("t", "2 + 2?", answer="four")
    return Trajectory(task, "g", 0, turns, Outcome.FINISHED, state=state)


def test_the_environments_rewards_are_summed_and_placed_at_their_turns_where_asked():
    reward = make_reward("environment")(trajectory(0.5, None, 2.0))
    assert (reward.value, reward.per_turn) == (2.5, None)
    reward = make_reward("environment", per_turn=True)(trajectory(0.5, None, 2.0))
    assert (reward.value, reward.per_turn) == (2.5, (0.5, 0.0, 2.0))


def test_no_reward_of_the_environment_is_an_error_unless_none_means_zero():
    with pytest.raises(RewardError, match="missing=zero"):
        make_reward("environment")(trajectory(None, None))
    assert make_reward("environment", missing="zero")(trajectory(None, None)).value == 0.0


def test_they_are_weighed_beside_a_graders():
    rewards = {"environment": {"weight": 0.5, "per_turn": True}, "exact_match": 2.0}
    reward = make_reward("weighted_sum", rewards=rewards)(trajectory(1.0, 3.0))
    assert reward.value == 0.5 * 4.0 + 2.0 * 1.0
    assert reward.per_turn == (0.5, 1.5)
    assert (reward.parts["environment"], reward.parts["exact_match"]) == (4.0, 1.0)


STATEFUL = """
def tidy(trajectory):
    rooms = trajectory.state["rooms"]
    return sum(room["clean"] for room in rooms) / len(rooms)
"""


def test_a_reward_in_a_process_of_its_own_reads_the_final_state(tmp_path):
    file = tmp_path / "house.py"
    file.write_text(STATEFUL)
    state = {"rooms": [{"clean": True}, {"clean": False}, {"clean": False}, {"clean": False}]}
    with Grader(f"{file}:tidy", timeout_s=60) as grader:
        assert grader.isolation == "process"
        graded = asyncio.run(grader.graded(trajectory(None, state=state)))
    assert graded.reward is not None
    assert graded.reward.value == 0.25


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ({"exact_mach": 1}, "exact_mach"),
        ({"environment": {"per_tur": True}}, "per_tur"),
        ({"environment": "much"}, "is no weight of environment"),
        ({"weighted_sum": {"rewards": {"exact_mach": 1}}}, "exact_mach"),
        ({}, "needs 'rewards'"),
    ],
)
def test_a_wrong_ingredient_is_found_before_there_is_anything_to_score(rewards, told):
    with pytest.raises(AgentR1Error, match=told):
        check_ingredients(rewards)
