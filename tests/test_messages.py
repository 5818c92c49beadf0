"""Messages keep what they carry, or name what would be lost."""

import pytest

from agent_r1.errors import MessageError
from agent_r1.messages import in_words, read_messages, read_tools

CALL = {
    "id": "call_7",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
HISTORY = [
    {"role": "system", "content": "Help."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+2?"}],
    },
    {"role": "assistant", "content": None, "reasoning_content": "add", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "tool_call_id": "call_7", "name": "add"},
]


def test_everything_is_kept():
    system, user, answer, result = (m.as_message() for m in read_messages(HISTORY, strict=True))
    assert system == {"role": "system", "content": "Help."}
    assert user == {"role": "user", "content": "What is 1+2?"}
    function = {"name": "add", "arguments": {"a": 1, "b": 2}}
    assert answer == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "add",
        "tool_calls": [{"type": "function", "id": "call_7", "function": function}],
    }
    assert result == {"role": "tool", "content": "3", "tool_call_id": "call_7", "name": "add"}


def test_what_was_read_is_read_again_alike():
    once = read_messages(HISTORY, strict=True)
    assert read_messages([m.as_message() for m in once], strict=True) == once


def test_columns_that_a_table_had_to_fill_are_no_fields():
    """Parquet gives every message every field, with nothing in it."""
    filled = {"role": "user", "content": "?", "tool_calls": None, "name": None, "audio": None}
    assert read_messages([filled], strict=True)[0].as_message() == {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            {"role": "user", "content": "?", "audio": {"id": 1}},
            r"messages\[0\]\.audio would be lost",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "parts of type 'text'"),
        ({"role": "user", "content": "?", "tool_calls": [CALL]}, "tool_calls has no meaning"),
        ({"role": "user", "content": "?", "name": 7}, "name must be text"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            "'function' with a 'name'",
        ),
        ({"content": "?"}, "an object with a 'role'"),
    ],
)
def test_what_cannot_be_kept_is_named(message, said):
    with pytest.raises(MessageError, match=said):
        read_messages([message], strict=True)


def test_a_result_of_no_call_is_named():
    wrong = [*HISTORY[:-1], {**HISTORY[-1], "tool_call_id": "call_8"}]
    with pytest.raises(MessageError, match=r"messages\[3\]\.tool_call_id.*call_8.*call_7"):
        read_messages(wrong, strict=True)


def test_requests_may_say_what_no_model_hears():
    """The openai client sends such fields back with every answer."""
    said = {"role": "assistant", "content": "3", "refusal": None, "annotations": ["x"]}
    (read,) = read_messages([said])
    assert read.as_message() == {"role": "assistant", "content": "3"}


def test_a_message_in_words():
    shown = in_words(HISTORY[2])
    assert (
        "<think>\nadd\n</think>" in shown
        and '{"name": "add", "arguments": {"a": 1, "b": 2}}' in shown
    )


def test_tools_are_read_in_every_form():
    bare = {"name": "add", "description": "Adds.", "parameters": {}}
    wrapped = {"type": "function", "function": bare}
    for given in ([bare], [wrapped], '[{"name": "add", "description": "Adds.", "parameters": {}}]'):
        assert read_tools(given) == (wrapped,)
    assert read_tools(None) == read_tools("") == read_tools([]) == ()
    for wrong, said in (("[", "no JSON"), ({}, "a list"), ([{"x": 1}], r"tools\[0\]")):
        with pytest.raises(MessageError, match=said):
            read_tools(wrong)
