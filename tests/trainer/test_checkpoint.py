"""A checkpoint is whole or not there."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from full_disk import a_disk_that_is_full_after

from agent_r1.errors import CheckpointError
from agent_r1.models.load import save_model
from agent_r1.testing import tiny_model
from agent_r1.trainer.checkpoint import CheckpointStore, load_state, step_of


def export_nothing(path):
    path.mkdir()


def test_what_was_saved_is_read_back(tmp_path):
    store = CheckpointStore(tmp_path)
    state = {"step": 3, "weights": torch.arange(4.0), "nested": {"list": [1, 2.5, "x", None]}}
    path = store.save(3, state, export_nothing)
    assert store.latest() == path
    assert step_of(path) == 3
    loaded = load_state(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def test_old_checkpoints_go_when_a_newer_one_is_whole(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 10, 9):
        store.save(step, {"step": step}, export_nothing)
    assert [step_of(path) for path in store.list()] == [9, 10]


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"n": 1}, export_nothing)
    store.save(1, {"n": 2}, export_nothing)
    assert load_state(store.latest()) == {"n": 2}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("part", ["state", "policy"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, part):
    store = CheckpointStore(tmp_path)
    model = tiny_model()
    store.save(1, {"n": 1}, export_nothing)
    state = {"n": 2, "big": torch.zeros(100_000 if part == "state" else 1)}
    with (
        a_disk_that_is_full_after(40_000),
        pytest.raises(CheckpointError, match=r"step-000001 is untouched.*Free some disk space"),
    ):
        store.save(2, state, lambda path: save_model(model, None, path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert load_state(store.latest()) == {"n": 1}
    store.save(2, state, lambda path: save_model(model, None, path))
    assert step_of(store.latest()) == 2


def test_a_bug_in_the_export_is_no_disk_error_and_leaves_no_torn_checkpoint(tmp_path):
    def buggy(path):
        raise KeyError("bug")

    store = CheckpointStore(tmp_path)
    with pytest.raises(KeyError):
        store.save(1, {}, buggy)
    assert store.latest() is None


def test_a_damaged_state_says_what_to_do(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, {"n": 1}, export_nothing)
    (path / "state.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="resume_mode"):
        load_state(path)


def test_a_folder_of_another_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="step-000020"):
        step_of(tmp_path)


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from agent_r1.trainer.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep=3)
step = 0
while True:
    step += 1
    store.save(step, {"step": step, "data": torch.full((50_000,), step)}, Path.mkdir)
    print(step, flush=True)
"""


def test_killing_the_writer_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(folder)], stdout=subprocess.PIPE
        ) as writer:
            announced = int(writer.stdout.readline())
            time.sleep(0.01 + 0.013 * attempt)
            os.kill(writer.pid, signal.SIGKILL)
        store = CheckpointStore(folder)
        assert step_of(store.latest()) >= announced
        for path in store.list():
            state = load_state(path)
            assert state["step"] == step_of(path)
            assert bool((state["data"] == state["step"]).all())


def test_a_checkpoint_for_the_time_passed_is_replaced_by_the_next(tmp_path):
    now = [0.0]
    store = CheckpointStore(tmp_path, keep=2, every_minutes=10, clock=lambda: now[0])
    names = []
    for step, minutes, passing in [(1, 9, None), (2, 10, True), (3, 19, None), (4, 20, True),
                                   (5, 21, False), (6, 30, None), (7, 31, True), (8, 32, False),
                                   (9, 33, False)]:  # fmt: skip
        now[0] = minutes * 60.0
        assert store.overdue is (passing is True)
        if passing is not None:
            store.save(step, {"step": step}, lambda folder: folder.mkdir(), passing=passing)
        names.append([int(path.name[-1]) for path in store.list()])
    assert names == [[], [2], [2], [4], [5], [5], [5, 7], [5, 8], [8, 9]]


def test_a_checkpoint_that_is_written_later_counts_when_it_is_whole(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"n": 1}, export_nothing)
    gate, seen = threading.Event(), []
    store.finish_later(store.begin(2), {"n": 2}, gate.wait, seen.append)
    store.check()
    assert [step_of(path) for path in store.list()] == [1] and not seen
    gate.set()
    store.wait()
    assert [step_of(path) for path in store.list()] == [2] and seen == store.list()


def test_what_goes_wrong_with_a_later_checkpoint_is_raised_once_and_leaves_no_draft(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"n": 1}, export_nothing)

    def refused():
        raise OSError("No space left on device")

    store.finish_later(store.begin(2), {"n": 2}, refused, None)
    with pytest.raises(CheckpointError, match=r"No space left.*step-000001 is untouched"):
        store.begin(3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert store.begin(3).is_dir()


def test_a_draft_of_a_killed_process_is_removed_by_the_next(tmp_path):
    (tmp_path / ".writing-step-000007").mkdir()
    CheckpointStore(tmp_path).save(3, {"n": 3}, export_nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_without_a_limit_no_checkpoint_is_overdue(tmp_path):
    now = [0.0]
    store = CheckpointStore(tmp_path, clock=lambda: now[0])
    now[0] = 1e9
    assert not store.overdue
