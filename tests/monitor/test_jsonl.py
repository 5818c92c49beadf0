"""Lines survive kills and full disks; a resumed run repeats exactly what it forgot."""

import errno
import os

import numpy as np
import pytest

from agent_r1.errors import DataError
from agent_r1.monitor.jsonl import JsonlFile, json_number, read_jsonl


def steps(path):
    return [record["step"] for record in read_jsonl(path)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lines.jsonl"


@pytest.fixture
def file(path):
    file = JsonlFile(path)
    yield file
    file.close()


def test_what_is_appended_is_read_back_in_order(file, path):
    file.append([{"step": 1, "a": "é\n"}, {"step": 1}])
    file.append([{"step": 2, "a": None}])
    assert list(read_jsonl(path)) == [
        {"step": 1, "a": "é\n"},
        {"step": 1},
        {"step": 2, "a": None},
    ]


@pytest.mark.parametrize("torn", [b'{"step": 3', b'{"step": 3}', b"\xff", b"{" * 100_000])
def test_an_unfinished_last_line_is_passed_over_and_removed_by_the_next_writer(path, torn):
    whole = b'{"step":1}\n{"step":2}\n'
    path.write_bytes(whole + torn)
    assert steps(path) == [1, 2]
    file = JsonlFile(path)
    assert path.read_bytes() == whole
    file.append([{"step": 3}])
    file.close()
    assert steps(path) == [1, 2, 3]


def test_a_file_with_nothing_but_an_unfinished_line_becomes_empty(path):
    path.write_bytes(b'{"step"')
    JsonlFile(path).close()
    assert path.read_bytes() == b""


def test_rewinding_drops_later_steps_and_what_follows_them(file, path):
    file.append([{"step": s} for s in (0, 1, 1, 2, 2, 3)])
    file.rewind(1)
    assert steps(path) == [0, 1, 1]
    file.append([{"step": 2, "again": True}])
    assert steps(path) == [0, 1, 1, 2]
    file.rewind(-1)
    assert steps(path) == []


def test_rewinding_drops_a_damaged_line_and_what_follows(path):
    path.write_bytes(b'{"step":1}\nnonsense\n{"step":1}\n')
    file = JsonlFile(path)
    file.rewind(5)
    file.close()
    assert steps(path) == [1]


def test_damage_before_the_end_is_an_error_with_the_line(path):
    path.write_bytes(b'{"step":1}\nnonsense\n{"step":2}\n')
    with pytest.raises(DataError, match="line 2"):
        list(read_jsonl(path))


def test_a_missing_file_is_an_error(path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_jsonl(path))


def test_a_full_disk_in_the_middle_of_a_write_leaves_whole_lines(file, path, monkeypatch):
    """The kernel takes a part of the line and then refuses: the part is taken back."""
    file.append([{"step": 1}])
    real = os.pwrite

    def full(fd, data, offset):
        if offset > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:15], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.append([{"step": 2, "text": "x" * 100}])
    monkeypatch.undo()
    assert path.read_bytes() == b'{"step":1}\n'
    file.append([{"step": 2}])
    assert steps(path) == [1, 2]


def test_numpy_values_and_foreign_objects_become_plain(file, path):
    class Odd:
        def __str__(self):
            return "odd"

    file.append([{"step": 1, "a": np.arange(2), "b": np.float32(0.5), "c": Odd(), "d": {1, 2}}])
    (record,) = read_jsonl(path)
    assert record == {"step": 1, "a": [0, 1], "b": 0.5, "c": "odd", "d": [1, 2]}


def test_half_a_surrogate_pair_survives(file, path):
    file.append([{"step": 1, "text": "a\ud83d"}, {"step": 2}])
    assert [r.get("text") for r in read_jsonl(path)] == ["a\ud83d", None]
    file.rewind(1)
    assert steps(path) == [1]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1.5, -0.0, 1e-320])
def test_every_number_survives(file, path, value):
    file.append([{"step": 1, "x": json_number(value)}])
    (record,) = read_jsonl(path)
    assert float(record["x"]) == value


def test_not_a_number_survives(file, path):
    file.append([{"step": 1, "x": json_number(float("nan"))}])
    (record,) = read_jsonl(path)
    assert record["x"] == "nan" and float(record["x"]) != float(record["x"])
