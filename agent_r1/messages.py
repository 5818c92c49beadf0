"""Chat messages of OpenAI's protocol: read and checked once, compared, written back.

Nothing that a message carries is dropped on the way: it is kept, or refused by its name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_r1.errors import MessageError
from agent_r1.types import Message

_ROLES = {"developer": "system", "function": "tool"}
_KNOWN = ("system", "user", "assistant", "tool")
_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of an assistant's message."""

    name: str
    arguments: Any
    """As an object, or as text where it is no JSON."""
    id: str | None = None

    @property
    def key(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, sort_keys=True)})"

    @property
    def text(self) -> str:
        """As models of the Hermes format write it."""
        call = {"name": self.name, "arguments": self.arguments}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's form, with the arguments as an object."""
        call: dict[str, Any] = {"type": "function"}
        if self.id is not None:
            call["id"] = self.id
        return call | {"function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message, reduced to what a model sees of it."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    name: str | None = None
    call_id: str | None = None
    reasoning: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for messages that say the same.

        Agents send answers back changed in ways that do not matter: spaces around the text,
        other formatting of arguments, identifiers of calls.
        """
        return (self.role, self.content.strip(), *(call.key for call in self.calls))

    def as_message(self) -> Message:
        """As a record keeps it: every field that there is."""
        given = {
            "reasoning_content": self.reasoning,
            "tool_calls": [call.as_dict() for call in self.calls] or None,
            "tool_call_id": self.call_id,
            "name": self.name,
        }
        present = {key: value for key, value in given.items() if value is not None}
        return {"role": self.role, "content": self.content, **present}


def in_words(message: Message) -> str:
    """What a message says, for a person: thinking, text, and the calls in Hermes' form."""
    try:
        (read,) = read_messages([message])
    except MessageError:  # of an older record
        return str(message.get("content", ""))
    thought = message.get("reasoning_content")
    blocks = [f"<think>\n{thought}\n</think>" if thought else "", read.content]
    return "\n".join(filter(None, [*blocks, *(call.text for call in read.calls)]))


def read_messages(given: object, *, strict: bool = False) -> tuple[ChatMessage, ...]:
    """The messages of a request, or with ``strict`` of a data set or an environment.

    A request may hold fields that say nothing to a model (``refusal``, ``annotations``), and
    its agent's thinking, which the ids of its answers hold already; those are passed over.
    With ``strict`` every field that is not empty is kept or refused, roles may be any that a
    chat template knows, and a result must name a call that was made.

    Raises:
        MessageError: names the message and the field.
    """
    if not isinstance(given, list | tuple) or not given:
        raise MessageError("'messages' must be a list with at least one message")
    messages = tuple(_read(message, f"messages[{i}]", strict) for i, message in enumerate(given))
    if strict:
        _check_links(messages)
    return messages


def _read(message: object, where: str, strict: bool) -> ChatMessage:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise MessageError(f"{where} must be an object with a 'role'")
    role = _ROLES.get(message["role"], str(message["role"]))
    if role not in _KNOWN and not strict:
        raise MessageError(f"{where}.role: {message['role']!r} is not supported")
    if strict:
        _check_fields(message, role, where)
    calls = message.get("tool_calls")
    return ChatMessage(
        role,
        read_content(message.get("content"), f"{where}.content"),
        tuple(_read_call(call, where) for call in (() if calls is None else calls)),
        message.get("name") or None,
        message.get("tool_call_id") or None,
        (message.get("reasoning_content") or None) if strict else None,
    )


def _check_fields(message: Mapping[str, Any], role: str, where: str) -> None:
    for name, value in message.items():
        empty = value is None or (isinstance(value, str | list | tuple | dict) and not value)
        if name in _FIELDS or empty:
            continue
        raise MessageError(
            f"{where}.{name} would be lost: no chat template is given a field of this name. Known "
            f"are {', '.join(_FIELDS)}; put what it says into 'content', or remove it"
        )
    if not any(message.get(name) is not None for name in ("content", "tool_calls")):
        raise MessageError(f"{where} has neither 'content' nor 'tool_calls'")
    for name, roles in (
        ("tool_calls", ("assistant",)),
        ("reasoning_content", ("assistant",)),
        ("tool_call_id", ("tool",)),
    ):
        calls = message.get(name)
        if calls is not None and len(calls) and role not in roles:
            raise MessageError(f"{where}.{name} has no meaning in a message of role {role!r}")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(name) or "", str):
            raise MessageError(f"{where}.{name} must be text, not {message[name]!r:.60}")


def _check_links(messages: Sequence[ChatMessage]) -> None:
    made: set[str] = set()
    for i, message in enumerate(messages):
        made |= {call.id for call in message.calls if call.id is not None}
        if message.call_id is not None and made and message.call_id not in made:
            raise MessageError(
                f"messages[{i}].tool_call_id: no call before it has the id {message.call_id!r}; "
                f"there are {', '.join(sorted(made))}"
            )


def read_content(content: object, where: str) -> str:
    """Text, or text parts joined. Raises :class:`MessageError` for images and the like."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise MessageError(f"{where} must be text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text") or not isinstance(
            part.get("text"), str
        ):
            raise MessageError(f"{where}: parts of type {kind!r} are not supported, only text")
        texts.append(part["text"])
    return "".join(texts)


def _read_call(call: object, where: str) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(f"{where}.tool_calls: each needs a 'function' with a 'name'")
    assert isinstance(call, Mapping)
    name, arguments = function["name"], parsed_arguments(function.get("arguments") or {})
    return Call(name, arguments, call.get("id") or None)


def parsed_arguments(given: Any) -> Any:
    """Arguments as an object, where they are text that holds one."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError):  # what a model wrote may be no JSON
            return json.loads(given)
    return given


def read_tools(given: object) -> tuple[Mapping[str, Any], ...]:
    """Announced functions in OpenAI's form, from a list or its JSON text; without the ``type``
    and ``function`` around them as well.

    Raises:
        MessageError: says what is wrong with which of them.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else []
        except ValueError as error:
            raise MessageError(f"'tools' is text, but no JSON: {error}") from error
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        raise MessageError(f"'tools' must be a list of functions, not {given!r:.60}")
    return tuple(_read_tool(tool, i) for i, tool in enumerate(given))


def _read_tool(tool: object, i: int) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(
            f"tools[{i}] must be a function with a 'name', as OpenAI's protocol describes it, "
            f"not {tool!r:.80}"
        )
    assert isinstance(tool, Mapping)
    if tool.get("type", "function") != "function" and "function" in tool:
        raise MessageError(f"tools[{i}]: tools of type {tool['type']!r} are not supported")
    return {"type": "function", "function": dict(function)}
