"""Credit per turn, worked by hand."""

import math

import pytest
import torch

from agent_r1.algorithms.advantages import (
    dr_grpo,
    gae,
    grpo,
    reinforce_plus_plus,
    remax,
    rloo,
)
from agent_r1.algorithms.episodes import unroll
from agent_r1.algorithms.process import action_rewards, scaled_turn_rewards
from agent_r1.algorithms.turns import gigpo, turn_gae
from agent_r1.errors import ConfigError, RecordError

NAN = math.nan


def test_rewards_sit_on_the_last_action_of_turn_and_trajectory(batch, same):
    inputs = batch([".00.11.."], [1.0], turn_reward=[[0.25, 0.5]])
    episodes = unroll(inputs)
    earned = episodes.scatter(action_rewards(inputs, episodes, norm="none"))
    same(earned, [[0, 0, 0.25, 0, 0, 1.5, 0, 0]])


def test_process_rewards_chain_across_segments(batch, same):
    inputs = batch(
        [".2", "01"],
        [1.0, 1.0],
        trajectory=[3, 3],
        segment=[1, 0],
        turn_reward=[[0.1, 0.2, 0.3]] * 2,
    )
    result = reinforce_plus_plus(inputs, whiten=False, process_reward_norm="none")
    same(result.advantages, [[0, 1.3], [1.6, 1.5]])


def test_process_rewards_reach_gae(batch, same):
    values = torch.zeros(1, 6).double()
    inputs = batch([".00.1."], [1.0], values=values, turn_reward=[[0.5, -0.25]])
    result = gae(inputs, lam=0.0, whiten=False, process_reward_norm="none")
    same(result.advantages, [[0, 0, 0.5, 0, 0.75, 0]])


@pytest.mark.parametrize(("coef", "gains"), [(0.0, 0.0), (0.5, 0.25), (2.0, 1.0)])
def test_the_coefficient_weighs_process_rewards_in_returns(coef, gains, batch, same):
    inputs = batch([".0.1"], [1.0], turn_reward=[[0.5, 0.0]])
    options = {"process_reward_coef": coef, "process_reward_norm": "none"}
    same(
        reinforce_plus_plus(inputs, whiten=False, **options).returns,
        [[0, 1 + gains, 0, 1]],
    )


def test_process_rewards_of_who_is_not_counted_have_no_baseline(batch, same):
    inputs = batch([".0", ".0"], [1.0, 1.0], turn_reward=[[5.0], [3.0]], counted=[False, False])
    same(dr_grpo(inputs, process_reward_norm="none").advantages, torch.zeros(2, 2).double())


def test_process_rewards_are_centred_per_group_and_credited_onwards(batch, same):
    # Process rewards of the group: 1, 0, 0, 0.2 -> mean 0.3 -> z = .7, -.3 | -.3, -.1
    inputs = batch([".0.1", ".0.1"], [1.0, 0.0], turn_reward=[[1.0, 0.0], [0.0, 0.2]])
    result = dr_grpo(inputs, process_reward_norm="none")
    same(result.advantages, [[0, 0.5 + 0.4, 0, 0.5 - 0.3], [0, -0.5 - 0.4, 0, -0.5 - 0.1]])
    halved = dr_grpo(inputs, process_reward_norm="none", process_reward_coef=0.5)
    same(halved.advantages, [[0, 0.7, 0, 0.35], [0, -0.7, 0, -0.55]])


def test_grpo_standardises_process_rewards_as_it_does_outcomes(batch, same):
    inputs = batch([".0.1", ".0.1"], [1.0, 0.0], turn_reward=[[1.0, 0.0], [0.0, 0.2]])
    outcome = 0.5 / (math.sqrt(0.5) + 1e-6)
    std = math.sqrt((0.49 + 0.09 + 0.09 + 0.01) / 3) + 1e-6
    z = [[0.7 / std, -0.3 / std], [-0.3 / std, -0.1 / std]]
    expected = [
        [0, outcome + sum(z[0]), 0, outcome + z[0][1]],
        [0, -outcome + sum(z[1]), 0, -outcome + z[1][1]],
    ]
    for unit in (1.0, 1000.0):  # the unit of process rewards does not matter
        scaled = batch(
            [".0.1", ".0.1"],
            [1.0, 0.0],
            turn_reward=(torch.tensor([[1.0, 0.0], [0.0, 0.2]]).double() * unit),
        )
        same(grpo(scaled).advantages, expected, atol=1e-4)
    same(grpo(inputs, process_reward_norm="none").advantages, expected)


def test_process_rewards_are_scaled_to_the_spread_of_the_outcome(batch, same):
    inputs = batch([".0.1", ".0.1"], [10.0, 0.0], turn_reward=[[1.0, 0.0], [0.0, 1.0]])
    episodes = unroll(inputs)
    scaled = scaled_turn_rewards(inputs, episodes, "outcome")
    outcome_std, process_std = math.sqrt(50), math.sqrt(1 / 3)
    same(scaled, [[outcome_std / process_std, 0], [0, outcome_std / process_std]])


@pytest.mark.parametrize("estimator", [gae, reinforce_plus_plus, rloo, dr_grpo, turn_gae])
def test_the_unit_of_process_rewards_does_not_matter(estimator, batch, same):
    def run(unit):
        return estimator(
            batch(
                [".0.1", ".0.1"],
                [1.0, 0.0],
                turn_reward=torch.tensor([[1.0, 0.0], [0.5, 0.2]]).double() * unit,
                values=torch.zeros(2, 4).double(),
            )
        ).advantages

    same(run(1.0), run(100.0))


def test_when_nobody_solved_the_task_process_rewards_still_teach(batch):
    inputs = batch([".0.1", ".0.1"], [0.0, 0.0], turn_reward=[[1.0, 0.0], [0.0, 0.0]])
    for estimator in (grpo, dr_grpo, rloo, reinforce_plus_plus):
        advantages = estimator(inputs).advantages
        assert advantages[0, 1] > 0.1 and advantages[1, 1] < 0


def test_more_turns_of_average_worth_earn_nothing(batch, same):
    inputs = batch([".0.1.2.3", ".0......"], [1.0, 1.0], turn_reward=[[0.1] * 4, [0.1, 0, 0, 0]])
    same(dr_grpo(inputs).advantages, torch.zeros(2, 8).double())


def test_nan_is_no_reward_and_takes_no_part(batch, same):
    inputs = batch([".0.1", ".0.1"], [1.0, 0.0], turn_reward=[[1.0, NAN], [0.0, NAN]])
    same(
        dr_grpo(inputs, process_reward_norm="none").advantages,
        [[0, 1.0, 0, 0.5], [0, -1.0, 0, -0.5]],
    )
    same(
        reinforce_plus_plus(inputs, whiten=False, process_reward_norm="none").returns,
        [[0, 2.0, 0, 1.0], [0, 0, 0, 0]],
    )


def test_what_lies_beyond_the_last_turn_is_not_read(batch, same):
    short = [".0..", ".0.1"]
    a = batch(short, [1.0, 0.0], turn_reward=[[1.0, 0.0], [0.0, 0.2]])
    b = batch(short, [1.0, 0.0], turn_reward=[[1.0, 77.0], [0.0, 0.2]])
    same(grpo(a).advantages, grpo(b).advantages)


def test_a_turn_without_a_column_is_an_error(batch):
    with pytest.raises(RecordError, match="turn 1 was taken"):
        grpo(batch([".0.1"], [1.0], turn_reward=[[0.5]]))


def test_the_norm_is_checked(batch):
    with pytest.raises(ConfigError, match="process_reward_norm"):
        grpo(batch([".0"], [1.0], turn_reward=[[0.5]]), process_reward_norm="batch")


def test_remax_takes_process_rewards(batch, same):
    inputs = batch([".0", ".0"], [1.0, 0.0], greedy_reward=[0.5, 0.5], turn_reward=[[1.0], [0.0]])
    same(remax(inputs, process_reward_norm="none").advantages, [[0, 1.0], [0, -1.0]])


def test_turn_gae_by_hand(batch, same):
    # Turn 0: V 0.5, reward 0.1; turn 1: V 0.25, reward 1 + 0.2. gamma 0.9, lam 0.8.
    # A_1 = 1.2 - 0.25 = 0.95; A_0 = 0.1 + 0.9 * 0.25 - 0.5 + 0.72 * 0.95 = 0.509
    inputs = batch([".00.11"], [1.0], values=[[9, 0.5, 8, 9, 0.25, 8]], turn_reward=[[0.1, 0.2]])
    result = turn_gae(inputs, gamma=0.9, lam=0.8, whiten=False, process_reward_norm="none")
    same(result.advantages, [[0, 0.509, 0.509, 0, 0.95, 0.95]])
    same(result.returns, [[0, 1.009, 1.009, 0, 1.2, 1.2]])


def test_turn_gae_bootstraps_and_chains_across_segments(batch, same):
    inputs = batch(
        ["..11", ".00."],
        [1.0, 1.0],
        trajectory=[2, 2],
        segment=[1, 0],
        values=[[9, 9, 0.25, 8], [9, 0.5, 8, 9]],
        truncated=[True, True],
        bootstrap_value=[2.0, 2.0],
    )
    result = turn_gae(inputs, gamma=0.5, lam=1.0, whiten=False)
    # A_1 = 1 + 0.5 * 2 - 0.25 = 1.75; A_0 = 0.5 * 0.25 - 0.5 + 0.5 * 1.75 = 0.5
    same(result.advantages, [[0, 0, 1.75, 1.75], [0, 0.5, 0.5, 0]])


def test_turn_gae_with_one_token_per_turn_is_gae(batch, same):
    inputs = batch([".0.1.2"], [1.0], values=torch.rand(1, 6).double())
    options = {"gamma": 0.9, "lam": 0.7, "whiten": False}
    same(turn_gae(inputs, **options).advantages, gae(inputs, **options).advantages)


def test_the_length_of_a_thought_does_not_discount_a_turn(batch, same):
    short = batch([".0.1"], [1.0], values=torch.zeros(1, 4).double())
    long = batch([".00000.1"], [1.0], values=torch.zeros(1, 8).double())
    a = turn_gae(short, gamma=0.5, whiten=False).advantages[0, 1]
    b = turn_gae(long, gamma=0.5, whiten=False).advantages[0, 1]
    same(a, b)


def test_gigpo_by_hand(batch, same):
    # States: both begin in state 7; then one is in state 8, the other in 9.
    # Returns with gamma 0.5: trajectory 0: R_0 = 0.5, R_1 = 1; trajectory 1: R_0 = 0, R_1 = 0.
    inputs = batch([".0.1", ".0.1"], [1.0, 0.0], state_id=[[7, 8], [7, 9]])
    episode = 0.5 / (math.sqrt(0.5) + 1e-6)
    step = 0.25 / (math.sqrt(0.125) + 1e-6)
    result = gigpo(inputs, gamma=0.5, step_advantage_w=2.0)
    same(
        result.advantages,
        [[0, episode + 2 * step, 0, episode], [0, -episode - 2 * step, 0, -episode]],
    )
    plain = gigpo(inputs, gamma=0.5, norm_adv_by_std_in_grpo=False)
    same(plain.advantages, [[0, 0.75, 0, 0.5], [0, -0.75, 0, -0.5]])


def test_gigpo_compares_within_a_group_only(batch, same):
    inputs = batch(
        [".0"] * 4, [1.0, 0.0, 5.0, 3.0], group=[0, 0, 1, 1], state_id=[[7], [7], [7], [7]]
    )
    result = gigpo(inputs, norm_adv_by_std_in_grpo=False)
    same(result.advantages[:, 1], [1.0, -1.0, 2.0, -2.0])


def test_gigpo_meets_a_state_twice_in_one_trajectory(batch, same):
    # Revisiting a state counts as two visits: returns 1 and 1 of the first, 0 of the second.
    inputs = batch([".0.1", ".0.."], [1.0, 0.0], state_id=[[7, 7], [7, 0]])
    result = gigpo(inputs, norm_adv_by_std_in_grpo=False)
    same(result.advantages, [[0, 0.5 + 1 / 3, 0, 0.5 + 1 / 3], [0, -0.5 - 2 / 3, 0, 0]])


def test_gigpo_without_states_compares_turns_of_equal_number(batch, same):
    inputs = batch([".0.1", ".0.1"], [1.0, 0.0])
    result = gigpo(inputs, gamma=0.5, norm_adv_by_std_in_grpo=False)
    same(result.advantages, [[0, 0.75, 0, 1.0], [0, -0.75, 0, -1.0]])


def test_gigpo_checks_its_columns(batch):
    with pytest.raises(RecordError, match="state_id"):
        gigpo(batch([".0.1"], [1.0], state_id=[[3]]))


def test_gigpo_uses_process_rewards_in_its_step_returns(batch, same):
    inputs = batch(
        [".0.1", ".0.1"],
        [0.0, 0.0],
        turn_reward=[[1.0, 0.0], [0.0, 0.0]],
        state_id=[[7, 8], [7, 9]],
    )
    result = gigpo(inputs, norm_adv_by_std_in_grpo=False)
    same(result.advantages, [[0, 0.5, 0, 0], [0, -0.5, 0, 0]])
