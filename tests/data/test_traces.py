import json

import pytest

from agent_r1.data.traces import (
    Author,
    Trace,
    model,
    read_traces,
    tool,
    trace_from_row,
    write_traces,
)
from agent_r1.errors import DataError

CHAT = Trace(
    ({"role": "system", "content": "Use tools."}, {"role": "user", "content": "2*3? 😀"}),
    (model("<code>print(2*3)</code>"), tool("\n6\n"), model("It is 6.")),
    "made up",
)
PLAIN = Trace("2*3=", (model("6"),))


def test_traces_survive_the_disk(tmp_path):
    path = tmp_path / "traces.jsonl"
    assert write_traces(path, [CHAT, PLAIN]) == 2
    assert list(read_traces(path)) == [CHAT, PLAIN]


def test_empty_lines_are_skipped(tmp_path):
    path = tmp_path / "traces.jsonl"
    write_traces(path, [PLAIN])
    path.write_text("\n" + path.read_text() + "\n\n")
    assert list(read_traces(path)) == [PLAIN]


def test_a_chat_is_split_where_the_model_begins():
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
            {"role": "tool", "content": "t"},
            {"role": "assistant", "content": "b"},
        ]
    }
    trace = trace_from_row(row)
    assert [m["role"] for m in trace.prompt] == ["system", "user"]
    assert [(s.author, s.text) for s in trace.segments] == [
        (Author.MODEL, "a"),
        (Author.TOOL, "t"),
        (Author.MODEL, "b"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "field 'segments' is missing"),
        ({"segments": []}, "field 'prompt' is missing"),
        ({"prompt": 3, "segments": []}, "'prompt' must be text or a list"),
        ({"prompt": "", "segments": [{"role": "model", "text": "x"}]}, "needs a prompt"),
        ({"prompt": "p", "segments": []}, "must end with a segment that the model wrote"),
        ({"prompt": "p", "segments": [{"role": "tool", "text": "x"}]}, "must end with a segment"),
        ({"prompt": "p", "segments": [{"role": "human", "text": "x"}]}, "'human' is unknown"),
        ({"prompt": "p", "segments": [{"role": "model"}]}, "a segment is"),
        ({"prompt": "p", "segments": "x"}, "'segments' must be a list"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ([1], "a JSON object expected"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_remedy(tmp_path, row, message):
    path = tmp_path / "traces.jsonl"
    write_traces(path, [PLAIN])
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        list(read_traces(path))
    assert f"{path}:2" in str(caught.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text("{broken\n")
    with pytest.raises(DataError, match=r"traces\.jsonl:1: no valid JSON"):
        list(read_traces(path))


def test_a_missing_file_is_an_error_before_the_first_trace(tmp_path):
    with pytest.raises(DataError, match="no trace file"):
        next(read_traces(tmp_path / "none.jsonl"))
