"""The order of training: reproducible, resumable, fair."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.data.loader import TaskLoader
from agent_r1.errors import CheckpointError, DataError
from agent_r1.types import Task


def tasks(n):
    return [Task(f"t{i}", "q", i) for i in range(n)]


def take(loader, n):
    return [[task.answer for task in next(loader)] for _ in range(n)]


def test_the_order_is_fixed_for_ever():
    """A change of these numbers breaks every checkpoint: they were drawn once."""
    assert take(TaskLoader(tasks(7), 3, seed=1), 4) == [[5, 3, 0], [4, 2, 6], [5, 2, 3], [4, 1, 0]]


@given(st.integers(1, 30), st.integers(1, 10), st.booleans(), st.booleans(), st.integers(0, 99))
def test_an_epoch_uses_a_task_at_most_once(n, size, shuffle, drop_last, seed):
    if drop_last and n < size:
        return
    loader = TaskLoader(tasks(n), size, shuffle=shuffle, drop_last=drop_last, seed=seed)
    for epoch in range(3):
        assert loader.epoch == epoch
        used = [i for batch in take(loader, loader.batches_per_epoch) for i in batch]
        assert len(used) == len(set(used)) == n - loader.left_over
        if not shuffle:
            assert used == list(range(len(used)))


@given(st.integers(5, 20), st.integers(1, 5), st.booleans(), st.integers(0, 12))
def test_a_resumed_loader_goes_on_exactly(n, size, drop_last, position):
    straight = TaskLoader(tasks(n), size, drop_last=drop_last, seed=3)
    take(straight, position)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = TaskLoader(tasks(n), size, drop_last=drop_last, seed=3).load_state_dict(state)
    assert take(resumed, 9) == take(straight, 9)


def test_epochs_and_seeds_differ():
    loader = TaskLoader(tasks(50), 50, seed=1)
    first, second = take(loader, 2)
    (other,) = take(TaskLoader(tasks(50), 50, seed=2), 1)
    assert first != second != other != first
    assert sorted(first) == sorted(second) == sorted(other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TaskLoader(tasks(9), 2), "tasks was 8, is 9"),
        (TaskLoader(tasks(9)[1:], 2), "ids was"),
        (TaskLoader(tasks(8), 4), "batch_size was 2, is 4"),
        (TaskLoader(tasks(8), 2, seed=5), "seed was 0, is 5"),
        (TaskLoader(tasks(8), 2, shuffle=False), "shuffle was True, is False"),
    ],
)
def test_a_position_in_other_data_is_refused(other, message):
    state = TaskLoader(tasks(8), 2).state_dict()
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)


def test_too_few_tasks_for_a_batch():
    with pytest.raises(DataError, match=r"3 tasks do not fill a batch of 4.*train_batch_size"):
        TaskLoader(tasks(3), 4)
    assert take(TaskLoader(tasks(3), 4, shuffle=False, drop_last=False), 2) == [[0, 1, 2]] * 2
    with pytest.raises(DataError):
        TaskLoader([], 4, drop_last=False)
