"""Columns of a million rows are computed with shortcuts; the long way gives the same."""

import numpy as np
import pytest

from agent_r1.monitor.index.columns import (
    Columns,
    first_places,
    group_numbers,
    histogram,
    numbered,
    spread,
)
from agent_r1.monitor.index.facts import FACTS


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("kinds", [3, 1000])
def test_the_beginning_of_an_order_is_that_of_the_whole(descending, kinds):
    rng = np.random.default_rng(0)
    values = rng.integers(0, kinds, 500).astype(float)
    values[rng.random(500) < 0.3] = np.nan
    whole = np.argsort(-values if descending else values, kind="stable")
    for count in (0, 1, 7, 200, 349, 400, 500, 900):
        assert first_places(values, count, descending).tolist() == whole[:count].tolist()
    assert first_places(values[:0], 5, descending).tolist() == []


@pytest.mark.parametrize("reach", [20, 10**12])
def test_keys_are_numbered_as_sorting_them_would(reach):
    keys = np.random.default_rng(0).integers(-reach, reach, 300)
    names, place = numbered(keys)
    assert names.tolist() == sorted(set(keys.tolist()))
    assert names[place].tolist() == keys.tolist()


@pytest.mark.parametrize("together", [True, False])
def test_spread_is_that_of_the_siblings_wherever_they_stand(together):
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.integers(0, 2**63, 20).astype(np.uint64), 4)
    rewards = rng.standard_normal(80)
    rewards[::7], rewards[:4] = np.nan, np.nan
    if not together:
        order = rng.permutation(80)
        groups, rewards = groups[order], rewards[order]
    assert len(set(group_numbers(groups).tolist())) == 20
    for i, value in enumerate(spread(groups, rewards)):
        known = [r for r in rewards[groups == groups[i]] if not np.isnan(r)]
        assert value == pytest.approx(np.std(known)) if known else np.isnan(value)
    assert spread(groups[:0], rewards[:0]).tolist() == []


def test_a_histogram_has_a_bar_for_each_of_few_integers():
    assert histogram(np.array([2, 2, 5]), 20) == ([1.5, 2.5, 3.5, 4.5, 5.5], [2, 0, 0, 1], 0)
    edges, counts, missing = histogram(np.array([0.0, 0.25, 1.0, np.nan]), 4)
    assert (edges, counts, missing) == ([0.0, 0.25, 0.5, 0.75, 1.0], [1, 1, 0, 1], 1)
    assert histogram(np.array([0.5, 0.5]), 2) == ([0.5, 1.0, 1.5], [2, 0], 0)


def test_rows_are_put_cut_and_packed():
    rows = np.zeros(10, FACTS)
    rows["step"], rows["reward"] = np.arange(10), np.nan
    columns = Columns()
    columns.resize(7)
    columns.put(0, rows)
    assert columns["step"].tolist() == list(range(7))
    columns.resize(3)
    columns.resize(5)
    columns.put(3, rows[:2])
    assert columns["step"].tolist() == [0, 1, 2, 0, 1]
    assert columns.row(-3)["step"] == 2 and np.isnan(columns.row(0)["reward"])
    assert columns.packed(1, 4).tobytes() == np.concatenate([rows[1:3], rows[:1]]).tobytes()
