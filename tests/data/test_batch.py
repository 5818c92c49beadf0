import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.data.batch import Batch, token_budget_batches
from agent_r1.errors import RecordError
from agent_r1.testing import make_trajectory
from agent_r1.types import Outcome, Reward

PAD = ord("!")


def scored(turns, *, group="g", index=0, reward=1.0, per_turn=None, **options):
    made = make_trajectory(turns, **options)
    return dataclasses.replace(
        made, group_id=group, index=index, reward=Reward(reward, per_turn=per_turn)
    )


def edited_history():
    """Two turns whose second prompt is not the first one continued."""
    made = scored([("call", "result"), "answer"], group="e")
    second = dataclasses.replace(made.turns[1], prompt_ids=tuple(map(ord, "summary")))
    return dataclasses.replace(made, turns=(made.turns[0], second))


def test_a_batch_lays_out_tokens_masks_and_rows():
    batch = Batch.from_trajectories(
        [
            scored([("ab", "xyz"), "c"], prompt="Q", reward=2.0),
            scored(["d"], prompt="Q", index=1, reward=-1.0, outcome=Outcome.LENGTH),
        ],
        PAD,
    )
    assert batch.token_ids.tolist() == [list(map(ord, "Qabxyzc")), list(map(ord, "Qd!!!!!"))]
    assert batch.lengths.tolist() == [7, 2]
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.turn_index.tolist() == [[-1, 0, 0, -1, -1, -1, 1], [-1, 0, -1, -1, -1, -1, -1]]
    assert batch.version.tolist() == [[-1, 0, 0, -1, -1, -1, 0], [-1, 0, -1, -1, -1, -1, -1]]
    assert batch.behavior_logprobs[0].tolist() == [0, -1, -1, 0, 0, 0, -1]
    assert batch.reward.tolist() == [2.0, -1.0]
    assert batch.terminated.tolist() == [True, False]
    assert batch.truncated.tolist() == [False, True]
    assert batch.turn_reward is None
    assert (len(batch), batch.tokens) == (2, 9)


def test_a_sampled_token_equal_to_the_padding_id_is_still_trained_on():
    batch = Batch.from_trajectories([scored(["a!"], prompt="!"), scored(["abcd"], index=1)], PAD)
    assert batch.lengths.tolist() == [3, 12]
    assert batch.loss_mask[0, :4].tolist() == [False, True, True, False]


def test_segments_of_an_edited_history_share_trajectory_and_reward():
    batch = Batch.from_trajectories([scored(["a"]), edited_history()], PAD)
    assert batch.trajectory_id.tolist() == [0, 1, 1]
    assert batch.group_id.tolist() == [0, 1, 1]
    assert batch.segment.tolist() == [0, 0, 1]
    assert batch.reward.tolist() == [1.0, 1.0, 1.0]
    assert batch.turn_index[2].max() == 1


def test_process_rewards_are_nan_where_a_turn_has_none():
    batch = Batch.from_trajectories(
        [
            scored([("a", "r"), "b"], per_turn=(0.5, -0.5)),
            scored(["c"], index=1),
            scored(["d"], index=2, per_turn=(0.25,)),
        ],
        PAD,
    )
    expected = torch.tensor([[0.5, -0.5], [math.nan, math.nan], [0.25, math.nan]])
    assert batch.turn_reward is not None
    assert torch.equal(batch.turn_reward.isnan(), expected.isnan())
    assert torch.equal(batch.turn_reward.nan_to_num(9.0), expected.nan_to_num(9.0))


def test_process_rewards_of_another_number_than_turns_are_refused():
    with pytest.raises(RecordError, match="2 turns but 1 process reward"):
        Batch.from_trajectories([scored([("a", "r"), "b"], per_turn=(1.0,))], PAD)


def test_unusable_trajectories_are_an_error_unless_leaving_them_out_is_asked_for():
    failed = dataclasses.replace(scored(["a"], group="f"), outcome=Outcome.TOOL_ERROR)
    unscored = dataclasses.replace(scored(["a"], group="u"), reward=None)
    good = scored(["a"], reward=3.0)
    with pytest.raises(RecordError, match="f/0 failed"):
        Batch.from_trajectories([good, failed], PAD)
    with pytest.raises(RecordError, match="u/0 has no reward"):
        Batch.from_trajectories([good, unscored], PAD)
    batch = Batch.from_trajectories([failed, good, unscored], PAD, drop_unusable=True)
    assert batch.reward.tolist() == [3.0]
    with pytest.raises(RecordError, match="no trajectory to train on"):
        Batch.from_trajectories([failed, unscored], PAD, drop_unusable=True)


def test_a_completion_without_a_prompt_is_refused():
    with pytest.raises(RecordError, match="very first token"):
        Batch.from_trajectories([scored(["a"], prompt="")], PAD)


def test_select_cuts_to_the_longest_chosen_row():
    batch = Batch.from_trajectories([scored(["abcdef"]), scored(["gh"], index=1)], PAD)
    part = batch.select(torch.tensor([1]))
    assert part.token_ids.shape == (1, 10)
    assert part.trajectory_id.tolist() == [1]
    assert batch.select(torch.tensor([False, True])).token_ids.equal(part.token_ids)


def test_padding_rows_carry_no_token_and_belong_to_nobody():
    batch = Batch.from_trajectories([scored(["ab"], per_turn=(1.0,))], PAD).padded(3)
    assert batch.lengths.tolist() == [10, 0, 0]
    assert not batch.loss_mask[1:].any()
    assert batch.group_id.tolist() == batch.trajectory_id.tolist() == [0, -1, -1]
    assert batch.turn_reward is not None and batch.turn_reward[1:].isnan().all()
    with pytest.raises(RecordError, match="cannot pad 3 rows to 2"):
        batch.padded(2)


@settings(max_examples=200)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=25), budget=st.integers(1, 120))
def test_micro_batches_partition_the_rows_within_the_budget(sizes, budget):
    parts = token_budget_batches(torch.tensor(sizes), range(len(sizes)), budget)
    assert torch.cat(parts).tolist() == list(range(len(sizes)))
    for part in parts:
        real = [sizes[i] for i in part.tolist() if sizes[i]]
        assert sum(real) <= budget or len(real) == 1


def test_micro_batches_are_balanced_and_keep_siblings_together():
    rows = [scored(["x" * 2], group=g, index=i, prompt="p" * 8) for i in range(2) for g in "abcd"]
    batch = Batch.from_trajectories(rows, PAD)
    parts = batch.micro_batches(50)  # 80 tokens: two batches, 40 and 40 and not 50 and 30
    assert [batch.group_id[part].tolist() for part in parts] == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_a_row_longer_than_the_budget_is_alone():
    parts = token_budget_batches(torch.tensor([3, 50, 3, 3]), range(4), 10)
    assert [part.tolist() for part in parts] == [[0], [1], [2, 3]]
    with pytest.raises(RecordError, match="must be positive"):
        token_budget_batches(torch.tensor([3]), range(1), 0)
