"""Published forms of conversations, and who wrote which words of them."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent_r1.data.traces import Author, read_traces, trace_from_row
from agent_r1.errors import DataError

INLINE = (
    "I compute it.\n<code>\n```python\nprint(6*7)\n```\n</code>\n"
    "<interpreter>\n42\n</interpreter>\n\nNow check.\n<code>\nprint(1)\n</code>"
    "<interpreter>1</interpreter>\nSo <answer>\\boxed{42}</answer>"
)
ROW = {"messages": [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": INLINE}]}
EXPECTED = [
    (Author.MODEL, "I compute it.\n<code>\n```python\nprint(6*7)\n```\n</code>"),
    (Author.TOOL, "\n<interpreter>\n42\n</interpreter>\n"),
    (Author.MODEL, "\nNow check.\n<code>\nprint(1)\n</code>"),
    (Author.TOOL, "\n<interpreter>\n1\n</interpreter>\n"),
    (Author.MODEL, "So <answer>\\boxed{42}</answer>"),
]


def pieces(trace):
    return [(segment.author, segment.text) for segment in trace.segments]


def test_inline_observations_are_split_off():
    assert pieces(trace_from_row(ROW)) == EXPECTED


def test_sharegpt_names_mean_the_same():
    row = {
        "conversations": [
            {"from": "human", "value": "6*7?"},
            {"from": "gpt", "value": INLINE},
        ]
    }
    trace = trace_from_row(row)
    assert pieces(trace) == EXPECTED
    assert trace.prompt == ({"role": "user", "content": "6*7?"},)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "jsonl.gz", "json text in parquet"])
def test_every_kind_of_file_is_read(tmp_path, kind):
    path = tmp_path / f"traces.{kind.split()[-1]}"
    if kind == "jsonl":
        path.write_text(json.dumps(ROW) + "\n")
    elif kind == "json":
        path.write_text(json.dumps([ROW]))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([ROW]), path)
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": json.dumps(ROW["messages"])}]), path)
    (trace,) = read_traces(path)
    assert pieces(trace) == EXPECTED


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("The result <interpreter>42</interpreter> is 42", "stands where no call ends"),
        ("<code>1</code><interpreter>42 is it", "has no partner"),
        ("<code>1</code><interpreter>42</interpreter>", "ends with a tool's words"),
        (
            "<code>1</code> 42 <code>2</code><interpreter>2</interpreter> so",
            "stands where|followed",
        ),
        ("42</interpreter> so", "has no partner"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(said, reason):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]}
    with pytest.raises(DataError, match=reason):
        trace_from_row(row)


def test_tool_calls_are_kept_for_the_template():
    call = {"id": "a", "function": {"name": "add", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "2"},
            {"role": "assistant", "content": [{"type": "text", "text": "It is 2."}]},
        ],
        "tools": '[{"name": "add", "parameters": {}}]',
    }
    trace = trace_from_row(row)
    assert trace.segments == ()
    assert trace.chat[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    ]
    assert [m["content"] for m in trace.chat] == ["1+1?", "", "2", "It is 2."]
    assert trace.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)
