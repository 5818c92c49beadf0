"""Messages of OpenAI's protocol: read, compared, rendered by the model's template.

Two ways lead from messages to ids. The first request of a conversation is rendered whole.
A request that goes on after an answer which this endpoint gave continues the very ids of
that answer: only what is new is rendered, as the model's template puts it behind an
assistant's turn, and encoded by itself.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_r1.errors import AgentR1Error, TemplateError
from agent_r1.rollout.codec import Codec, end_token_ids
from agent_r1.tool.text import between, neutralise

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ROLES = {"developer": "system", "function": "tool"}
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"


class BadRequest(AgentR1Error):
    """A request asks for something that is wrong or not supported; the message says what."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of an assistant's message."""

    name: str
    arguments: Any
    """As an object, or as text where it is no JSON."""

    @property
    def key(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, sort_keys=True)})"

    @property
    def text(self) -> str:
        """As models of the Hermes format write it."""
        call = {"name": self.name, "arguments": self.arguments}
        return f"{_OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{_CLOSE}"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message, reduced to what a model sees of it."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    name: str | None = None
    call_id: str | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for messages that say the same.

        Agents send answers back changed in ways that do not matter: spaces around the text,
        other formatting of arguments, identifiers of calls.
        """
        return (self.role, self.content.strip(), *(call.key for call in self.calls))


def read_messages(given: object) -> tuple[ChatMessage, ...]:
    """The ``messages`` of a request. Raises :class:`BadRequest`."""
    if not isinstance(given, list) or not given:
        raise BadRequest("'messages' must be a list with at least one message")
    return tuple(_read(message, i) for i, message in enumerate(given))


def _read(message: object, i: int) -> ChatMessage:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRequest(f"messages[{i}] must be an object with a 'role'")
    role = _ROLES.get(message["role"], message["role"])
    if role not in ("system", "user", "assistant", "tool"):
        raise BadRequest(f"messages[{i}].role: {message['role']!r} is not supported")
    calls = tuple(_read_call(call, i) for call in message.get("tool_calls") or ())
    return ChatMessage(
        role,
        read_content(message.get("content"), f"messages[{i}].content"),
        calls,
        message.get("name"),
        message.get("tool_call_id"),
    )


def read_content(content: object, where: str) -> str:
    """Text, or text parts joined. Raises :class:`BadRequest` for images and the like."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text") or not isinstance(part["text"], str):
            raise BadRequest(f"{where}: parts of type {kind!r} are not supported, only text")
        texts.append(part["text"])
    return "".join(texts)


def _read_call(call: object, i: int) -> Call:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRequest(f"messages[{i}].tool_calls: each needs a 'function' with a 'name'")
    return Call(function["name"], parsed_arguments(function.get("arguments") or {}))


def parsed_arguments(given: Any) -> Any:
    """Arguments as an object, where they are text that holds one."""
    if isinstance(given, str):
        with contextlib.suppress(ValueError):  # what a model wrote may be no JSON
            return json.loads(given)
    return given


def read_reply(text: str, *, tools: bool) -> ChatMessage:
    """The assistant's message that a completion is.

    With ``tools`` its ``<tool_call>`` blocks become calls and leave the content, unless one
    of them is no JSON with a name: then the text stays as it is, so that the agent sees what
    its model wrote.
    """
    if tools and _OPEN in text:
        calls = [_parsed(body) for body in between(text, _OPEN, _CLOSE)]
        if calls and all(calls):
            content = text[: text.index(_OPEN)].strip()
            return ChatMessage("assistant", content, tuple(call for call in calls if call))
    return ChatMessage("assistant", text)


def _parsed(body: str) -> Call | None:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    return Call(call["name"], arguments) if isinstance(arguments, dict) else None


class ChatRenderer:
    """Messages to ids, by the chat template of one tokenizer."""

    def __init__(self, codec: Codec) -> None:
        if getattr(codec.tokenizer, "chat_template", None) is None:
            raise TemplateError(
                "this model has no chat template, which the endpoint for agents needs; give it one "
                "with actor_rollout_ref.model.custom_chat_template=FILE"
            )
        self._codec = codec
        self._ends = end_token_ids(codec.tokenizer)
        known = getattr(codec.tokenizer, "added_tokens_decoder", {}).values()
        self._control = tuple(token.content for token in known if token.special)
        self._announces = self._shows("tools")
        self._calls = self._shows("calls")

    def prompt(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """Ids of a conversation that the model is to go on with.

        Raises :class:`BadRequest` if the template refuses it.
        """
        try:
            text = self._text(messages, tools, go_on=True)
        except TemplateError as error:
            raise BadRequest(str(error)) from error
        return tuple(self._codec.tokenizer.encode(text, add_special_tokens=False))

    def extension(
        self,
        context: Sequence[int],
        new: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]],
    ) -> tuple[int, ...] | None:
        """Ids to put behind a context that ends with a sampled answer.

        They close the answer (unless its own last token did), hold ``new``, and open the
        next answer. None where the template refuses these messages behind an answer.
        """
        before = [ChatMessage("user", "?"), ChatMessage("assistant", _MARK)]
        try:
            text = self._text([*before, *new], tools, go_on=True)
        except TemplateError:
            return None
        _, mark, behind = text.partition(_MARK)
        if not mark or _MARK in behind:
            return None
        ids = self._codec.encode_text(behind)
        if ids and context and context[-1] in self._ends and context[-1] == ids[0]:
            ids = ids[1:]
        return ids

    @property
    def parses(self) -> bool:
        """Whether the tokenizer says itself how its model's answers are read."""
        return getattr(self._codec.tokenizer, "response_template", None) is not None

    def reply(
        self, text: str, context: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> ChatMessage:
        """The assistant's message that a completion is, its tool calls read.

        They are read by the tokenizer's own ``response_template`` where it has one, which
        transformers applies, and in the format of Hermes and Qwen otherwise
        (:func:`read_reply`). What cannot be read stays text.
        """
        if not (tools and self.parses):
            return read_reply(text, tools=bool(tools))
        prefix = self._codec.decode(context)
        try:
            found = self._codec.tokenizer.parse_response(text, prefix=prefix, tools=list(tools))
            functions = [call.get("function", call) for call in found.get("tool_calls") or ()]
            calls = tuple(Call(str(f["name"]), f.get("arguments") or {}) for f in functions)
        except (ValueError, KeyError, TypeError, AttributeError):  # no call that can be read
            return ChatMessage("assistant", text)
        if not calls:
            return ChatMessage("assistant", text)
        return ChatMessage("assistant", str(found.get("content") or ""), calls)

    def _text(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]],
        *,
        go_on: bool,
    ) -> str:
        if tools and not self._announces:
            messages, tools = _announced(messages, tools), ()
        listed = [self._as_dict(message) for message in messages]
        return self._codec.template_text(listed, add_generation_prompt=go_on, tools=list(tools))

    def _as_dict(self, message: ChatMessage) -> dict[str, Any]:
        """The message as templates expect it; words of tools and users are made harmless."""
        content = message.content
        if message.role in ("user", "tool"):
            content = neutralise(content, self._control)
        if not self._calls and message.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
        if not self._calls and message.calls:
            blocks = [content, *(call.text for call in message.calls)]
            return {"role": message.role, "content": "\n".join(filter(None, blocks))}
        found: dict[str, Any] = {"role": message.role, "content": content}
        if message.calls:
            found["tool_calls"] = [
                {
                    "type": "function",
                    "id": f"call{number:05d}",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(message.calls)
            ]
        if message.role == "tool":
            found |= {"name": message.name or "tool", "tool_call_id": "call00000"}
        return found

    def _shows(self, what: str) -> bool:
        """Whether the template writes announced tools, or an assistant's calls, at all."""
        probe = {"name": "probe_of_the_template", "arguments": {}}
        described = {"type": "function", "function": {**probe, "description": "", "parameters": {}}}
        call = {"type": "function", "id": "call00000", "function": probe}
        user: dict[str, Any] = {"role": "user", "content": "?"}
        answer: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            text = self._codec.template_text(
                [user] if what == "tools" else [user, answer],
                add_generation_prompt=False,
                tools=[described] if what == "tools" else [],
            )
        except TemplateError:
            return False
        return "probe_of_the_template" in text


def _announced(
    messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]
) -> list[ChatMessage]:
    """The conversation with a system message that describes the tools."""
    text = in_words(tools)
    if messages[0].role == "system":
        first = ChatMessage("system", f"{messages[0].content}\n\n{text}")
        return [first, *messages[1:]]
    return [ChatMessage("system", text), *messages]


def in_words(tools: Sequence[Mapping[str, Any]]) -> str:
    """The announcement of tools for templates that write none."""
    listed = "\n".join(json.dumps(tool) for tool in tools)
    return (
        "You can call functions to help you answer. Their signatures:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and arguments as JSON between tags, then end your turn:\n"
        f'{_OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{_CLOSE}'
    )
