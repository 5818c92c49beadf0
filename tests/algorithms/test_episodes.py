import pytest
import torch

from agent_r1.algorithms.episodes import unroll
from agent_r1.errors import RecordError


def test_actions_come_in_time_order_across_tool_tokens_and_segments(batch):
    # The second row is the first segment of trajectory 7.
    inputs = batch(
        [".2..33", ".00.1.", ".0...."], [1, 1, 2], trajectory=[7, 7, 3], segment=[1, 0, 0]
    )
    episodes = unroll(inputs)
    assert episodes.of_rows(inputs.trajectory_id).tolist() == [3, 7]
    assert episodes.present.tolist() == [[1, 0, 0, 0, 0, 0], [1] * 6]
    assert episodes.position[1].tolist() == [7, 8, 10, 1, 4, 5]
    assert episodes.slot[1].tolist() == [0, 0, 1, 2, 3, 3]
    assert episodes.turn.tolist() == [[0, -1, -1, -1], [0, 1, 2, 3]]
    assert episodes.is_last[1].tolist() == [0, 0, 0, 0, 0, 1]
    assert episodes.is_turn_end[1].tolist() == [0, 1, 1, 1, 0, 1]
    assert episodes.is_turn_start[1].tolist() == [1, 0, 1, 1, 1, 0]
    assert episodes.is_turn_end[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_gather_and_scatter_undo_each_other(batch, same):
    inputs = batch([".2..33", ".00.1."], [1, 1], trajectory=[7, 7], segment=[1, 0])
    episodes = unroll(inputs)
    values = torch.arange(12.0).reshape(2, 6)
    same(episodes.gather(values), [[7, 8, 10, 1, 4, 5]])
    same(episodes.scatter(episodes.gather(values)), values * inputs.loss_mask)
    same(episodes.turn_sum(episodes.gather(values)), [[15, 10, 1, 9]])
    same(episodes.spread(torch.tensor([[1.0, 2, 3, 4]])), [[1, 1, 2, 3, 4, 4]])


def test_a_turn_number_may_be_missing(batch):
    # Turn 1 was masked out as a whole; turn 2 keeps its own number.
    episodes = unroll(batch([".0..2"], [1]))
    assert episodes.turn.tolist() == [[0, 2]]


def test_padding_rows_are_nobody(batch):
    inputs = batch([".00", "...", "..."], [1, 99, 98], trajectory=[0, -1, -1], group=[0, -1, -1])
    episodes = unroll(inputs)
    assert episodes.counted.tolist() == [False, True]
    assert episodes.present.any(1).tolist() == [False, True]


def test_a_padding_row_that_repeats_another_row_changes_nothing(batch):
    inputs = batch(["...", ".00"], [99, 1], trajectory=[0, 0], group=[5, 0])
    episodes = unroll(inputs)
    assert episodes.of_rows(inputs.reward).tolist() == [1.0]
    assert episodes.of_rows(inputs.group_id).tolist() == [0]


def test_a_masked_trajectory_is_spoken_for_by_its_own_row(batch):
    inputs = batch(
        ["..", "..", ".0"], [99, -4, 1], trajectory=[0, 0, 1], counted=[False, True, True]
    )
    episodes = unroll(inputs)
    assert episodes.of_rows(inputs.reward).tolist() == [-4.0, 1.0]
    assert episodes.counted.tolist() == [True, True]


def test_an_empty_batch_and_a_fully_masked_one_unroll(batch):
    episodes = unroll(batch(["...", "..."], [1, 2]))
    assert episodes.position.shape == (2, 0) and episodes.turn.shape == (2, 0)
    assert not episodes.counted.any()
    assert episodes.is_last.shape == episodes.is_turn_start.shape == (2, 0)
    assert episodes.scatter(episodes.gather(torch.ones(2, 3))).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", ["reward", "group"])
def test_segments_that_disagree_are_an_error(batch, name):
    given = {"reward": [1, 1], "group": [0, 0]} | {name: [1, 2]}
    inputs = batch([".0", ".1"], given["reward"], group=given["group"], trajectory=[4, 4])
    with pytest.raises(RecordError, match=name):
        unroll(inputs)


def test_a_model_token_needs_a_turn(batch):
    inputs = batch([".00"], [1.0])
    inputs.turn_index[0, 2] = -1
    with pytest.raises(RecordError, match="turn_index"):
        unroll(inputs)


def test_shapes_are_checked_where_the_record_is_built(batch):
    with pytest.raises(RecordError, match=r"values has shape \(1, 2\), expected \(1, 3\)"):
        batch([".00"], [1.0], values=[[0.0, 0.0]])
    with pytest.raises(RecordError, match="greedy_reward"):
        batch([".00"], [1.0], greedy_reward=[0.0, 1.0])
    with pytest.raises(RecordError, match="turn_reward"):
        batch([".00"], [1.0], turn_reward=[0.5])
