"""The compressed file of trajectories gives back what was stored, whatever happens to it."""

import dataclasses
import math
import struct

import pyarrow as pa
import pytest
from hypothesis import given, settings
from test_records import trajectories

from agent_r1.errors import DataError
from agent_r1.monitor.arrows import SCHEMA, ArrowFile, messages
from agent_r1.monitor.jsonl import decode, encode
from agent_r1.monitor.records import (
    ARROWS_FILE,
    Stored,
    encode_trajectory,
    load_trajectories,
    read_records,
    read_stored,
    trajectories_file,
)
from agent_r1.testing import make_trajectory
from agent_r1.types import Completion, Finish, Outcome


def write(path, rows):
    file = ArrowFile(path)
    file.append(rows)
    file.close()


def numbered(i):
    return dataclasses.replace(make_trajectory([(f"number {i}", "seen"), "end"]), group_id=f"g{i}")


def with_logprobs(*logprobs):
    (turn,) = make_trajectory(["abc"]).turns
    completion = Completion((1, 2, 3), logprobs or None, Finish.EOS, ((0, 1), (2, 5)))
    return dataclasses.replace(
        make_trajectory([]), turns=(dataclasses.replace(turn, completion=completion),)
    )


@settings(max_examples=40, deadline=None)
@given(trajectories(), trajectories())
def test_what_is_stored_comes_back_and_is_the_very_line_of_json(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("t") / ARROWS_FILE
    write(path, [Stored(first, 1, "train"), Stored(second, 1, "val")])
    assert [s.trajectory for s in read_stored(path)] == [first, second]
    lines = [encode(encode_trajectory(first, step=1, split="train"))]
    lines += [encode(encode_trajectory(second, step=1, split="val"))]
    assert list(read_records(path)) == [decode(line, "it") for line in lines]


@pytest.mark.parametrize(
    "logprobs", [(-0.5, -0.25, 0.0), (-0.1, -0.2, -math.inf), (-1e300, -0.5, -0.5), ()]
)
def test_log_probabilities_are_never_rounded(tmp_path, logprobs):
    stored = with_logprobs(*logprobs)
    write(tmp_path / ARROWS_FILE, [Stored(stored, 1, "train"), Stored(numbered(1), 1, "train")])
    assert list(load_trajectories(tmp_path)) == [stored, numbered(1)]


def test_trajectories_without_a_turn_are_stored(tmp_path):
    """An engine that fails at once leaves only such ones."""
    empty = dataclasses.replace(numbered(0), turns=(), outcome=Outcome.ENGINE_ERROR, reward=None)
    write(tmp_path / ARROWS_FILE, [Stored(empty, 1, "train")] * 2)
    assert list(load_trajectories(tmp_path)) == [empty, empty]


def test_other_programs_read_the_columns(tmp_path):
    """As the columnar format has it: what pyarrow reads without a line of this project."""
    rows = [with_logprobs(-0.5, -0.25, 0.0), with_logprobs()]
    write(tmp_path / ARROWS_FILE, [Stored(t, 4, "train") for t in rows])
    table = pa.ipc.open_stream((tmp_path / ARROWS_FILE).read_bytes()).read_all()
    assert table.schema.equals(SCHEMA)
    assert table["step"].to_pylist() == [4, 4]
    assert table["ids"].to_pylist() == [[*map(ord, "question"), 1, 2, 3]] * 2
    assert table["mask"].to_pylist() == [[0] * 8 + [1] * 3] * 2
    assert table["logprobs"].to_pylist() == [[-0.5, -0.25, 0.0], None]
    assert table["versions"].to_pylist() == [[1, 1, 5]] * 2


def test_a_file_torn_anywhere_keeps_what_was_whole_and_goes_on(tmp_path):
    path = tmp_path / ARROWS_FILE
    write(path, [Stored(numbered(0), 1, "train")])
    first = path.stat().st_size
    write(path, [Stored(numbered(1), 2, "train")])
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), first - 1, first, first + 7, len(whole) - 1]:
        path.write_bytes(whole[:length])
        expected = [numbered(0)] if length >= first else []
        assert list(load_trajectories(path)) == expected
        write(path, [Stored(numbered(2), 2, "train")])
        assert list(load_trajectories(path)) == [*expected, numbered(2)]


def test_rewinding_drops_later_steps_only(tmp_path):
    path = tmp_path / ARROWS_FILE
    file = ArrowFile(path)
    for step in (1, 2, 2, 5):
        file.append([Stored(numbered(step), step, "train")] * 3)
    for step, left in ((9, 12), (4, 9), (2, 9), (1, 3), (0, 0)):
        file.rewind(step)
        assert [s.step for s in read_stored(path)] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 5, 5, 5][:left]
    file.append([Stored(numbered(7), 7, "val")])
    file.close()
    assert [(s.step, s.split) for s in read_stored(path)] == [(7, "val")]


def test_batches_are_bounded_so_that_one_trajectory_is_read_quickly(tmp_path):
    path = tmp_path / ARROWS_FILE
    long = make_trajectory(["x" * 100_000])
    write(path, [Stored(numbered(i), 1, "train") for i in range(300)])
    write(path, [Stored(long, 1, "train")] * 5)
    assert [len(m.read("step")) for m in messages(path)] == [256, 44, 2, 2, 1]


def test_a_file_of_another_kind_is_not_written_to(tmp_path):
    path = tmp_path / ARROWS_FILE
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(DataError, match="no file of trajectories"):
        ArrowFile(path)
    assert path.read_bytes() == b"something else entirely" * 100


@pytest.mark.parametrize("length", [-1, 0, 1 << 30])
def test_damage_in_a_header_ends_the_file(tmp_path, length):
    path = tmp_path / ARROWS_FILE
    write(path, [Stored(numbered(0), 1, "train")])
    with path.open("ab") as file:
        file.write(b"\xff" * 4 + struct.pack("<i", length) + bytes(64))
    assert list(load_trajectories(path)) == [numbered(0)]


def test_either_file_of_a_folder_is_found(tmp_path):
    assert trajectories_file(tmp_path).name == "trajectories.jsonl"
    write(tmp_path / ARROWS_FILE, [])
    assert trajectories_file(tmp_path) == tmp_path / ARROWS_FILE
    assert trajectories_file(tmp_path / "trajectories.jsonl") == tmp_path / ARROWS_FILE
    (tmp_path / "trajectories.jsonl").touch()
    assert trajectories_file(tmp_path / "trajectories.jsonl").suffix == ".jsonl"
