"""Runs as data frames: the numbers of the files, row by row."""

import dataclasses
import sys

import pytest

from agent_r1 import runs
from agent_r1.config import Config
from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor import RunFolder
from agent_r1.testing import make_trajectory
from agent_r1.types import Reward, ToolCall


@pytest.fixture
def folder(tmp_path):
    made = make_trajectory([("<code>1</code>", "1"), "answer"])
    first, last = made.turns
    calls = (ToolCall(True, 0.5), ToolCall(False, 0.5))
    turns = (dataclasses.replace(first, tool_calls=calls), last)
    scored = dataclasses.replace(made, turns=turns, reward=Reward(0.5, {"accuracy": 1.0}))
    unscored = dataclasses.replace(made, index=1, reward=None, error="no answer")
    with RunFolder(tmp_path, Config()) as run:
        run.store([scored, unscored], step=1)
        run.log({"loss": 2.0}, step=1)
        run.store_validation([scored], step=2)
        run.log({"loss": 1.0, "val/x": 3.0}, step=2)
    return tmp_path


def test_metrics_have_the_steps_as_index(folder):
    frame = runs.load(folder).metrics()
    assert (frame.index.name, list(frame.index)) == ("step", [1, 2])
    assert list(frame.columns) == ["loss", "val/x"]
    assert list(frame["loss"]) == [2.0, 1.0]
    assert frame["val/x"].isna().tolist() == [True, False]


def test_trajectories_are_rows_in_the_order_of_the_file(folder):
    frame = runs.load(str(folder)).trajectories()
    assert list(frame["step"]) == [1, 1, 2]
    assert list(frame["split"]) == ["train", "train", "val"]
    assert list(frame["success"]) == [True, False, True]
    assert frame["reward"].isna().tolist() == [False, True, False]
    assert frame["reward/accuracy"].dropna().tolist() == [1.0, 1.0]
    assert list(frame["tool_calls"]) == [2, 1, 2]  # a made trajectory has one call that works
    assert list(frame["tool_errors"]) == [1, 0, 1]
    assert list(frame["turns"]) == [2, 2, 2]
    assert frame["error"][1] == "no answer"
    assert "transcript" not in frame.columns


def test_text_is_there_when_it_is_asked_for(folder):
    frame = runs.load(folder).trajectories(text=True)
    assert frame["model_text"][0] == "<code>1</code>answer"
    assert frame["transcript"][0] == "<code>1</code>1answer"


def test_mistakes_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="is no run"):
        runs.load(tmp_path / "absent")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read"):
        runs.load(folder).metrics()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"agent-r1\[notebook\]"):
        runs.load(folder).trajectories()


@pytest.mark.parametrize("form", ["polars", "datasets"])
def test_other_frames_hold_the_same_rows(folder, form):
    pytest.importorskip(form)
    run = runs.load(folder)
    table, frame = run.trajectories(form=form, text=True), run.trajectories(text=True)
    rows = table.to_dicts() if form == "polars" else list(table)
    assert len(rows) == len(frame) == 3
    for name in ("step", "split", "outcome", "success", "tool_errors", "transcript"):
        assert [row[name] for row in rows] == list(frame[name])
    assert [row["reward"] for row in rows][::2] == [0.5, 0.5]
    assert [row.get("reward/accuracy") for row in rows][::2] == [1.0, 1.0]


def test_a_form_whose_package_is_missing_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ConfigError, match="pip install polars"):
        runs.load(folder).trajectories(form="polars")
