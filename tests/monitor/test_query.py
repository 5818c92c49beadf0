"""Trajectories are found by what they are, at once, while the run writes, and after a resume."""

import dataclasses
import json
import sqlite3
import threading

import pytest

from agent_r1.config import Config
from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor import RunFolder
from agent_r1.monitor.index import INDEX_FILE
from agent_r1.monitor.query import Query, RunIndex, as_json
from agent_r1.monitor.records import trajectories_file
from agent_r1.testing import make_trajectory
from agent_r1.types import Outcome, Reward


def made(texts, *, group="g", index=0, reward=None, **fields):
    trajectory = make_trajectory(texts, **fields)
    scored = None if reward is None else Reward(reward, {"accuracy": reward})
    return dataclasses.replace(trajectory, group_id=group, index=index, reward=scored)


def opened(path, **trainer):
    return RunFolder.open(Config(trainer={"default_local_dir": str(path), "logger": (), **trainer}))


SEEN = [
    made([("<code>1/0</code>", "ZeroDivisionError: division by zero"), "I give up"],
         group="a", index=1, reward=0.0, calls=[[False], []]),
    made([("<code>print(7)</code>", "7"), "It is seven"], group="a", index=0, reward=1.0),
    made(["too long " * 30], group="b", reward=None, outcome=Outcome.LENGTH, data_source="aime"),
]  # fmt: skip


FORMS = pytest.mark.parametrize("form", ["arrow", "jsonl"])


@pytest.fixture(params=["arrow", "jsonl"])
def index(tmp_path, request):
    with opened(tmp_path, trajectory_file=request.param) as run:
        run.store(SEEN, step=3)
        run.store_validation([made(["naïve 数学 answer"], group="v", reward=0.5)], step=4)
    found = RunIndex(tmp_path)
    assert found.pending > 0 and found.count == 0
    assert found.refresh(60) and not found.refresh(60)
    assert found.pending == 0
    yield found
    found.close()


def keys(index, **asked):
    return [row.key for row in index.page(Query(descending=False, **asked)).rows]


def test_a_row_says_what_a_trajectory_is(index):
    row = index.page(Query(descending=False)).rows[0]
    assert (row.key, row.step, row.split, row.group, row.sibling) == ("0", 3, "train", "a", 1)
    assert (row.turns, row.tool_calls, row.tool_errors) == (2, 1, 1)
    assert row.tokens == len("<code>1/0</code>") + len("I give up")
    assert row.length == row.tokens + len("question") + len("ZeroDivisionError: division by zero")
    assert (row.reward, row.success, row.outcome) == (0.0, False, "finished")
    assert (row.source, row.excerpt, row.environment) == ("test", "I give up", "retool")
    assert row.staleness == 2  # its tokens are of version 0, those of step 3 of version 2
    unscored = index.row("2")
    assert unscored.reward is None and unscored.success is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "0123"),
        ({"split": "val"}, "3"),
        ({"split": "other"}, ""),
        ({"step_from": 4}, "3"),
        ({"step_to": 3, "outcome": "length"}, "2"),
        ({"source": "aime"}, "2"),
        ({"environment": "retool", "reward_min": 0.5}, "13"),
        ({"reward_max": 0.5}, "03"),
        ({"tokens_min": 200}, "2"),
        ({"tool_error": True}, "0"),
        ({"tool_error": False, "success": True}, "13"),
        ({"text": "zerodivisionerror"}, "0"),
        ({"text": "zero zerodiv"}, "0"),
        ({"text": "print give"}, ""),
        ({"text": "数"}, "3"),
        ({"text": "naive"}, "3"),
        ({"text": "question", "split": "train"}, "012"),
        ({"text": '"; DROP TABLE words; OR NOT *'}, ""),
        ({"text": "()"}, "0123"),
    ],
)
def test_filters_join(index, asked, found):
    assert "".join(keys(index, **asked)) == found
    assert index.page(Query(**asked, limit=1)).total == len(found)


def test_sorting_is_stable_and_puts_what_has_no_value_last(index):
    assert keys(index, sort="reward") == ["0", "3", "1", "2"]
    downwards = index.page(Query(sort="reward", descending=True)).rows
    assert [row.key for row in downwards] == ["1", "3", "0", "2"]
    assert [row.key for row in index.page(Query(sort="spread")).rows][:2] == ["0", "1"]
    assert [r.key for r in index.page(Query(offset=1, limit=2)).rows] == ["2", "1"]
    assert index.keys(Query(sort="tokens"))[0] == "2"
    with pytest.raises(ConfigError, match="reward"):
        index.page(Query(sort="rewards"))


def test_the_whole_record_and_its_siblings(index):
    assert index.trajectory("0")["turns"][0]["text"] == "<code>1/0</code>"
    assert [row.key for row in index.siblings("0")] == ["1", "0"]
    assert [row.key for row in index.siblings("3")] == ["3"]
    for key in ("4", "-1", "x", ""):
        with pytest.raises(DataError, match="no trajectory"):
            index.trajectory(key)


def test_distributions(index):
    histogram = index.histogram("reward", Query(), bins=2)
    assert histogram.edges == (0.0, 0.5, 1.0)
    assert (histogram.counts, histogram.missing) == ((1, 2), 1)
    turns = index.histogram("turns", Query(split="train"))
    assert (turns.edges, turns.counts) == ((0.5, 1.5, 2.5), (1, 2))
    assert index.histogram("reward", Query(outcome="length")).counts == ()
    assert index.counts("outcome", Query(split="train")) == {"finished": 2, "length": 1}
    assert index.step_counts(Query()) == {3: 3, 4: 1}
    assert index.step_counts(Query(split="other")) == {}
    third, fourth = index.steps()
    assert (third.step, third.count, third.scored, third.reward) == (3, 3, 2, 0.5)
    assert third.outcomes == {"finished": 2, "length": 1}
    assert (fourth.split, fourth.success) == ("val", 1.0)
    assert [summary.step for summary in index.steps("train")] == [3]
    assert index.steps("other") == ()
    assert json.loads(json.dumps(as_json(third)))["count"] == 3


@FORMS
def test_a_growing_run_is_followed_and_a_resumed_one_cut_back(tmp_path, form):
    with opened(tmp_path, trajectory_file=form) as run:
        for step in (1, 2, 3):
            run.store([made([f"word{step} first"], group=f"{step}")] * 2, step=step)
    index, other = RunIndex(tmp_path), RunIndex(tmp_path)
    index.refresh(60)
    assert other.count == 0 and other.refresh(60) and other.count == 6
    assert keys(index, text="word3") == ["4", "5"]
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    with opened(tmp_path) as run:
        run.rewind(1)
        assert index.refresh(60) and index.count == 2
        run.store([made(["word2 again"], group="2")] * 3, step=2)
        assert index.refresh(60) and index.count == 5
        assert keys(index, text="word2") == ["2", "3", "4"] and keys(index, text="word3") == []
        assert keys(index, text="again") == ["2", "3", "4"]
    assert other.refresh(60) and other.count == 5 and keys(other, text="first") == ["0", "1"]
    index.close()
    other.close()


@FORMS
def test_an_unfinished_last_record_is_awaited(tmp_path, form):
    with opened(tmp_path, trajectory_file=form) as run:
        run.store(SEEN[:1], step=1)
    stored = trajectories_file(tmp_path)
    whole = stored.read_bytes()
    whole = whole[whole.rindex(b"\xff" * 4) :] if form == "arrow" else whole
    with stored.open("ab") as file:
        file.write(whole[:100])
        file.flush()
        index = RunIndex(tmp_path)
        assert index.refresh(60) and index.count == 1 and not index.refresh(60)
        file.write(whole[100:])
    assert index.refresh(60) and index.count == 2
    index.close()


def test_a_damaged_line_is_told_and_what_came_before_is_there(tmp_path):
    with opened(tmp_path, trajectory_file="jsonl") as run:
        run.store(SEEN[:2], step=1)
    with (tmp_path / "trajectories.jsonl").open("ab") as file:
        file.write(b"{}\n")
    index = RunIndex(tmp_path)
    index.refresh(60)
    assert index.count == 2
    with pytest.raises(DataError, match="no trajectory"):
        index.refresh(60)
    assert keys(index) == ["0", "1"]
    index.close()


@FORMS
def test_halves_of_surrogate_pairs_and_controls_are_text(tmp_path, form):
    with opened(tmp_path, trajectory_file=form) as run:
        run.store([made(["half \ud83d of it \x1b[31m\u202e <script>"])], step=1)
    index = RunIndex(tmp_path)
    index.refresh(60)
    assert keys(index, text="script") == ["0"]
    assert "\ud83d" in index.trajectory("0")["turns"][0]["text"]
    index.close()


@pytest.mark.parametrize("what", [b"no database at all" * 100, b""])
def test_a_damaged_index_is_made_anew(tmp_path, what):
    with opened(tmp_path) as run:
        run.store(SEEN, step=1)
    (tmp_path / INDEX_FILE).write_bytes(what)
    index = RunIndex(tmp_path)
    assert index.refresh(60) and index.count == 3
    index.close()


def test_an_index_of_another_version_is_made_anew(tmp_path):
    with opened(tmp_path) as run:
        run.store(SEEN, step=1)
    with sqlite3.connect(tmp_path / INDEX_FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    index = RunIndex(tmp_path)
    assert index.refresh(60) and index.count == 3
    index.close()


def test_many_threads_ask_while_the_index_grows(tmp_path):
    with opened(tmp_path) as run:
        run.store([made([f"word{i}"], group=str(i)) for i in range(1500)], step=1)
        index = RunIndex(tmp_path)
        wrong = []

        def ask():
            for _ in range(50):
                page = index.page(Query(sort="reward", text="word1", limit=5))
                if any("word1" not in row.excerpt for row in page.rows):
                    wrong.append(page)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while index.pending:
            index.refresh(0.001)
        for thread in threads:
            thread.join()
    assert not wrong and index.count == 1500
    assert index.page(Query(text="word1")).total == 1 + 10 + 100 + 500
    index.close()


def test_a_folder_without_trajectories_is_refused(tmp_path):
    with pytest.raises(DataError, match="no trajectories"):
        RunIndex(tmp_path)
