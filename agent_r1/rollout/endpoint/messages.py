"""Messages of OpenAI's protocol, rendered by the model's template; its answers read.

Two ways lead from messages to ids. The first request of a conversation is rendered whole.
A request that goes on after an answer which this endpoint gave continues the very ids of
that answer: only what is new is rendered, as the model's template puts it behind an
assistant's turn, and encoded by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.errors import MessageError, TemplateError
from agent_r1.messages import Call, ChatMessage
from agent_r1.rollout.codec import Codec, end_token_ids
from agent_r1.tool.text import between, neutralise

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"


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
        self._written: dict[tuple[str, str], bool] = {}

    def prompt(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...]:
        """Ids of a conversation that the model is to go on with.

        Raises :class:`MessageError` if the template refuses it.
        """
        try:
            text = self._text(messages, tools, go_on=True)
        except TemplateError as error:
            raise MessageError(str(error)) from error
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
        tools = [self._harmless(tool) for tool in tools]
        if tools and not self._announces:
            messages, tools = _announced(messages, tools), ()
        listed = self._as_dicts(messages)
        return self._codec.template_text(listed, add_generation_prompt=go_on, tools=list(tools))

    def _as_dicts(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """Messages as templates expect them; what the model did not write is made harmless.

        Calls are numbered in the order in which they appear, because families disagree about
        what an identifier may look like. A result without one belongs to the first call that
        has none yet.
        """
        numbers = _Numbers()
        return [self._as_dict(message, numbers) for message in messages]

    def _as_dict(self, message: ChatMessage, numbers: _Numbers) -> dict[str, Any]:
        content = message.content
        if message.role != "assistant":
            content = neutralise(content, self._control)
        if not self._calls and message.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
        if not self._calls and message.calls:
            blocks = [content, *(call.text for call in message.calls)]
            content = "\n".join(filter(None, blocks))
        found: dict[str, Any] = {"role": message.role, "content": content}
        if message.reasoning is not None:
            found["reasoning_content"] = message.reasoning
        if message.calls and self._calls:
            found["tool_calls"] = [
                {
                    "type": "function",
                    "id": numbers.made(call),
                    "function": self._harmless({"name": call.name, "arguments": call.arguments}),
                }
                for call in message.calls
            ]
        if message.role == "tool":
            number, name = numbers.answered(message)
            found |= {"name": name, "tool_call_id": number}
        elif message.name is not None:
            found["name"] = self._harmless(message.name)
        return found

    def _harmless(self, value: Any) -> Any:
        """``value`` of JSON's types in which no text spells a control token."""
        if isinstance(value, str):
            return neutralise(value, self._control)
        if isinstance(value, Mapping):
            return {self._harmless(key): self._harmless(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._harmless(each) for each in value]
        return value

    def check(self, messages: Sequence[ChatMessage]) -> None:
        """Raises :class:`MessageError` where the template does not write a field of these.

        Names and identifiers of tools' messages are links, which templates need not write.
        """
        for i, message in enumerate(messages):
            fields = {"reasoning_content": message.reasoning}
            if message.role != "tool":
                fields["name"] = message.name
            for field, value in fields.items():
                if value is not None and not self._writes_cached(field, message.role):
                    raise MessageError(
                        f"messages[{i}].{field} would be lost: this model's chat template does not "
                        f"write it in a message of role {message.role!r}. Put what it says into "
                        "'content', remove it, or give a template that writes it "
                        "(actor_rollout_ref.model.custom_chat_template)"
                    )

    def _writes_cached(self, field: str, role: str) -> bool:
        if (field, role) not in self._written:
            self._written[field, role] = self._writes(field, role)
        return self._written[field, role]

    def _writes(self, field: str, role: str) -> bool:
        probe = {"role": role, "content": "?", field: "probe_of_the_template"}
        messages = [{"role": "user", "content": "?"}, probe] if role == "assistant" else [probe]
        try:
            text = self._codec.template_text(messages, add_generation_prompt=False)
        except TemplateError:
            return False
        return "probe_of_the_template" in text

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


class _Numbers:
    """Identifiers of the calls of one conversation, as all templates take them."""

    def __init__(self) -> None:
        self._given: list[tuple[str | None, str]] = []  # identifier and name of each call
        self._answered: set[int] = set()

    def made(self, call: Call) -> str:
        self._given.append((call.id, call.name))
        return _identifier(len(self._given) - 1)

    def answered(self, result: ChatMessage) -> tuple[str, str]:
        """Identifier and name of the call that a tool's message answers."""
        known = [i for i, (name, _) in enumerate(self._given) if name and name == result.call_id]
        waiting = (i for i in range(len(self._given)) if i not in self._answered)
        number = known[-1] if known else next(waiting, len(self._given))
        self._answered.add(number)
        called = self._given[number][1] if number < len(self._given) else "tool"
        return _identifier(number), result.name or called


def _identifier(number: int) -> str:
    """Nine letters and digits, which is what Mistral's templates insist on."""
    return f"call{number:05d}"


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
