"""The ``data`` section of a configuration: columns, bad rows, and whether answers can be graded."""

import json
import logging

import pytest

from agent_r1.config.schema import Config
from agent_r1.config.task import DataConfig, RewardConfig
from agent_r1.data.check import check_answers
from agent_r1.data.sources import load_configured
from agent_r1.errors import ConfigError, DataError
from agent_r1.trainer.tasks import load_split


def section(tmp_path, rows, **settings):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train_files=str(file), **settings)


ROW = {"q": "1 + 1?", "a": {"b": "2"}, "from": "sums", "n": 7}


def test_every_column_can_be_named(tmp_path):
    data = section(
        tmp_path,
        [ROW],
        prompt_key="q",
        answer_key="a.b",
        data_source_key="from",
        id_key="n",
        prompt_template="Q: {prompt}",
        system_prompt="Be brief.",
    )
    (task,) = load_configured(data, "train", 0).strict()
    assert (task.id, task.data_source, task.answer) == ("7", "sums", "2")
    assert [m["content"] for m in task.prompt] == ["Be brief.", "Q: 1 + 1?"]


def test_plain_text_becomes_a_chat_when_asked(tmp_path):
    data = section(tmp_path, [ROW], prompt_key="q", answer_key="n", apply_chat_template=True)
    assert load_configured(data, "train", 0).strict()[0].prompt == (
        {"role": "user", "content": "1 + 1?"},
    )


def test_a_template_says_where_the_prompt_goes(tmp_path):
    data = section(tmp_path, [ROW], prompt_key="q", answer_key="n", prompt_template="Q: {q}")
    with pytest.raises(ConfigError, match=r"write \{prompt\} in it"):
        load_configured(data, "train", 0)


def test_bad_rows_stop_a_run_or_are_named(tmp_path, caplog):
    rows = [ROW, {"q": "", "n": 1}, {"q": "?", "n": None}]
    strict = section(tmp_path, rows, prompt_key="q", answer_key="n")
    lenient = strict.model_copy(update={"skip_bad_rows": True})

    def load(data):
        return load_split(Config(data=data), None, "train", 0, measured=False)[""]

    with pytest.raises(DataError, match="2 of 3 rows are no usable tasks"):
        load(strict)
    with caplog.at_level(logging.WARNING):
        assert [task.prompt for task in load(lenient)] == ["1 + 1?"]
    assert "2 train rows are no tasks and are left out" in caplog.text
    assert "row 2: an empty prompt" in caplog.text
    assert "row 3: no answer in column 'n'" in caplog.text


def test_answers_that_no_model_can_give_are_found(tmp_path):
    rows = [{"q": "?", "a": a} for a in ("7", 8, ["9", "nine"], "}{", {"x": 1}, r"\\frac{1}{2}")]
    data = section(tmp_path, rows, prompt_key="q", answer_key="a")
    config = Config(data=data, reward=RewardConfig(name="exact_match"))
    first, *others = check_answers(config, "train")
    assert first == "4 of 6 reference answers are graded as right by 'exact_match'"
    assert [line.split(":")[1] for line in others] == ["4", "5"]
    assert "point data.answer_key at one of them" in others[1]
