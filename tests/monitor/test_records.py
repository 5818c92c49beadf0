"""A trajectory comes back from its line exactly as it was."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.errors import DataError
from agent_r1.monitor.jsonl import JsonlFile, encode
from agent_r1.monitor.records import (
    decode_trajectory,
    encode_trajectory,
    load_trajectories,
    read_stored,
)
from agent_r1.testing import make_trajectory
from agent_r1.types import (
    Completion,
    Finish,
    Outcome,
    Reward,
    Task,
    ToolCall,
    Trajectory,
    Turn,
)

numbers = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
ids = st.lists(st.integers(0, 200_000), max_size=5).map(tuple)
texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
tasks = st.builds(
    Task,
    id=texts,
    prompt=texts
    | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": texts}),
        min_size=1,
        max_size=3,
    ).map(tuple),
    answer=json_values,
    data_source=texts,
    extra=st.dictionaries(texts, json_values, max_size=3),
)
rewards = st.builds(
    Reward,
    value=finite,
    parts=st.dictionaries(texts, finite, max_size=3),
    per_turn=st.none() | st.lists(finite, max_size=3).map(tuple),
)


@st.composite
def versions(draw, length):
    later = draw(st.sets(st.integers(1, length - 1), max_size=3)) if length > 1 else ()
    return tuple((first, draw(st.integers(0, 9))) for first in [0, *sorted(later)])


@st.composite
def completions(draw):
    tokens = draw(ids)
    logprobs = draw(st.lists(numbers, min_size=len(tokens), max_size=len(tokens)))
    finish = draw(st.sampled_from(Finish))
    return Completion(
        tokens, tuple(logprobs), finish, draw(versions(len(tokens))), draw(st.none() | texts)
    )


@st.composite
def trajectories(draw):
    turns = []
    for _ in range(draw(st.integers(0, 3))):
        extends = bool(turns) and draw(st.booleans())
        turns.append(
            Turn(
                prompt_ids=turns[-1].next_prompt_ids if extends else draw(ids),
                completion=draw(completions()),
                text=draw(texts),
                observation_ids=draw(ids),
                observation_text=draw(texts),
                tool_calls=tuple(draw(st.lists(st.builds(ToolCall, st.booleans(), finite)))),
                generate_seconds=draw(finite),
                tool_seconds=draw(finite),
            )
        )
    return Trajectory(
        task=draw(tasks),
        group_id=draw(texts),
        index=draw(st.integers(0, 9)),
        turns=tuple(turns),
        outcome=draw(st.sampled_from(Outcome)),
        reward=draw(st.none() | rewards),
        error=draw(st.none() | texts),
        seconds=draw(finite),
    )


def through_json(trajectory):
    return json.loads(encode(encode_trajectory(trajectory, step=3, split="train")))


@given(trajectories())
def test_every_trajectory_comes_back_equal(trajectory):
    assert decode_trajectory(through_json(trajectory)) == trajectory


def test_nothing_of_a_record_is_forgotten():
    """A field that is added to a record must be added to its line (or this fails)."""
    record = through_json(make_trajectory([("a", "b"), "c"]))
    turn = record["turns"][0]
    derived = {"format", "step", "split", "id", "loss_mask"}
    assert set(record) - derived == {f.name for f in dataclasses.fields(Trajectory)}
    assert set(record["task"]) == {f.name for f in dataclasses.fields(Task)}
    names = {f.name for c in (Turn, Completion) for f in dataclasses.fields(c)}
    assert set(turn) == names - {"completion"}
    assert set(turn["tool_calls"][0]) == {f.name for f in dataclasses.fields(ToolCall)}
    assert {"value", "parts", "per_turn"} == {f.name for f in dataclasses.fields(Reward)}


def test_a_file_of_before_has_one_version_for_a_whole_completion():
    record = encode_trajectory(make_trajectory(["ab"]), step=1, split="train")
    del record["turns"][0]["versions"]
    record["turns"][0]["policy_version"] = 7
    (turn,) = decode_trajectory(record).turns
    assert turn.completion.versions == ((0, 7),)


def test_a_context_that_only_grew_is_stored_once():
    record = through_json(make_trajectory([("aa", "b"), ("cc", "d"), "e"], prompt="p" * 50))
    assert [turn["prompt_ids"] is None for turn in record["turns"]] == [False, True, True]


def test_the_masks_of_the_training_samples_stand_in_the_line():
    record = through_json(make_trajectory([("aa", "bbb"), "c"], prompt="pppp"))
    assert record["loss_mask"] == [[[0, 4], [1, 2], [0, 3], [1, 1]]]


def test_log_probabilities_that_json_lacks_come_back():
    base = make_trajectory(["ab"])
    turn = base.turns[0]
    completion = dataclasses.replace(turn.completion, logprobs=(math.nan, -math.inf))
    broken = dataclasses.replace(base, turns=(dataclasses.replace(turn, completion=completion),))
    back = decode_trajectory(through_json(broken)).turns[0].completion.logprobs
    assert math.isnan(back[0]) and back[1] == -math.inf


def test_a_file_of_trajectories_is_read_with_steps_and_splits(tmp_path):
    path = tmp_path / "trajectories.jsonl"
    first, second = make_trajectory(["a"]), make_trajectory([("b", "c"), "d"])
    file = JsonlFile(path)
    file.append([encode_trajectory(first, step=1, split="train")])
    file.append([encode_trajectory(second, step=2, split="val")])
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"format": 1, "step": 2')
    assert list(load_trajectories(path)) == [first, second]
    assert [(s.step, s.split) for s in read_stored(path)] == [(1, "train"), (2, "val")]


@pytest.mark.parametrize(
    "line", ['{"format": 99, "step": 1, "split": "train"}', '{"step": 1}', '{"format": 1}']
)
def test_a_line_that_is_no_trajectory_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "trajectories.jsonl"
    good = encode(encode_trajectory(make_trajectory(["a"]), step=1, split="train")).decode()
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match="record 2 is no trajectory of format 1"):
        list(load_trajectories(path))
