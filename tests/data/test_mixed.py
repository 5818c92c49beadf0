"""Batches over several environments: shares, order, epochs, resuming."""

from itertools import islice

import pytest

from agent_r1.data.mixed import MixedLoader
from agent_r1.errors import CheckpointError, DataError
from agent_r1.types import Task


def tasks(**counts):
    return {env: [Task(f"{env}{i}", "?", env=env) for i in range(n)] for env, n in counts.items()}


def names(loader, batches):
    return [[task.id for task in batch] for batch in islice(loader, batches)]


def test_every_prefix_holds_each_environments_share_to_within_a_task():
    loader = MixedLoader(
        tasks(a=7, b=3, c=50), 5, weights={"a": 3, "b": 1.5, "c": 0.5}, shuffle=False
    )
    drawn = [task.env for batch in islice(loader, 100) for task in batch]
    for length in range(1, len(drawn) + 1):
        for env, share in {"a": 0.6, "b": 0.3, "c": 0.1}.items():
            assert abs(drawn[:length].count(env) - share * length) <= 1


def test_the_order_is_worked_by_hand():
    loader = MixedLoader(tasks(a=2, b=3), 3, weights={"a": 2, "b": 1}, shuffle=False)
    assert names(loader, 3) == [["a0", "b0", "a1"], ["a0", "b1", "a1"], ["a0", "b2", "a1"]]


def test_without_weights_an_epoch_is_one_pass_over_all_tasks():
    loader = MixedLoader(tasks(a=9, b=3), 4, seed=5)
    assert loader.batches_per_epoch == 3
    for _ in range(2):
        epoch = [name for batch in names(loader, 3) for name in batch]
        assert sorted(epoch) == sorted(task.id for task in loader.tasks)
    assert MixedLoader(tasks(a=1, b=1), 16).batches_per_epoch == 1


def test_passes_are_shuffled_anew_by_seed_and_environment():
    def passes(seed):
        loader = MixedLoader(tasks(a=20, b=20), 20, seed=seed)
        drawn = [name for batch in names(loader, 4) for name in batch]
        return [
            [int(name[1:]) for name in drawn[half * 40 : half * 40 + 40] if name[0] == env]
            for env in "ab"
            for half in (0, 1)
        ]

    orders = [tuple(order) for seed in (1, 2) for order in passes(seed)]
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert passes(1) == passes(1)


@pytest.mark.parametrize("stop", [0, 1, 3, 8])
def test_a_resumed_loader_goes_on_where_it_was(stop):
    def make():
        return MixedLoader(tasks(a=4, b=5), 3, weights={"a": 1, "b": 2}, seed=3)

    straight = make()
    names(straight, stop)
    resumed = make().load_state_dict(straight.state_dict())
    assert names(resumed, 12) == names(straight, 12)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (MixedLoader(tasks(a=4, b=6), 3, weights={"a": 1, "b": 2}), "tasks was 9, is 10"),
        (MixedLoader(tasks(a=4, b=5), 3, weights={"a": 1, "b": 3}), "weights was"),
        (MixedLoader(tasks(a=4, c=5), 3, weights={"a": 1, "c": 2}), "envs was"),
        (MixedLoader(tasks(a=4, b=5), 3, weights={"a": 1, "b": 2}, seed=1), "seed was 0, is 1"),
    ],
)
def test_a_position_in_other_data_is_refused(other, told):
    state = MixedLoader(tasks(a=4, b=5), 3, weights={"a": 1, "b": 2}).state_dict()
    with pytest.raises(CheckpointError, match=told):
        other.load_state_dict(state)


def test_an_environment_without_tasks_or_weight_is_an_error():
    with pytest.raises(DataError, match="'b' has 0 tasks"):
        MixedLoader(tasks(a=1, b=0), 1)
    with pytest.raises(DataError, match="the weight 0"):
        MixedLoader(tasks(a=1, b=1), 1, weights={"a": 1, "b": 0})
