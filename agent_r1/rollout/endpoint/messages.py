"""Messages of OpenAI's protocol, rendered by the model's template; its answers read.

Two ways lead from messages to ids. The first request of a conversation is rendered whole.
A request that goes on after an answer which this endpoint gave continues the very ids of
that answer: only what is new is rendered, as the model's template puts it behind an
assistant's turn, and encoded by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from agent_r1.errors import MessageError, TemplateError
from agent_r1.messages import Call, ChatMessage
from agent_r1.rollout.codec import Codec, end_token_ids
from agent_r1.rollout.endpoint.families import family_template, is_whole
from agent_r1.rollout.prefixes import common_prefix
from agent_r1.tool.text import between, neutralise

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ENDS_OF_CALLS = ("<|call|>", "<|eom_id|>", "<|tool_response>")
"""What gpt-oss, Llama 3 and Gemma 4 end a turn with that calls a tool."""
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
        self._takes_system = self._shows("system")
        self._text_first = self._shows("text before calls")
        self._turn_ends = self._ends_of_turns()
        self._own_template = getattr(codec.tokenizer, "response_template", None)
        self._template = self._own_template or family_template(codec.tokenizer)
        self._kept: dict[tuple[str, ...], bool] = {}
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
        next answer. None where the template refuses these messages behind an answer, or
        leaves out what one of them says.
        """
        behind = self._behind(new, tools)
        if behind is None or not self.keeps(tuple(message.role for message in new)):
            return None
        ids = self._codec.encode_text(behind)
        if ids and context and context[-1] in self._ends and context[-1] == ids[0]:
            ids = ids[1:]
        return ids

    def keeps(self, roles: tuple[str, ...]) -> bool:
        """Whether the template writes what messages of these roles say behind an answer.

        Gemma 4's writes a tool's result only behind a call, gpt-oss's no system message.
        """
        if roles not in self._kept:
            said = [f"probe{i}" for i in range(len(roles))]
            probes = [ChatMessage(role, text) for role, text in zip(roles, said, strict=True)]
            behind = self._behind(probes, ()) or ""
            self._kept[roles] = all(text in behind for text in said)
        return self._kept[roles]

    def _behind(self, new: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> str | None:
        """The template's text from the end of an answer to the beginning of the next.

        Before results of tools the answer has a call for each, or one where the template takes
        no more (Llama 3): many write a result there only.
        """
        results = list(takewhile(lambda message: message.role == "tool", new))
        calls = tuple(Call(m.name or "tool", {}) for m in results) if self._calls else ()
        found = self._behind_calls(calls, new, tools)
        if found is None and len(calls) > 1:
            found = self._behind_calls(calls[:1], new, tools)
        return found

    def _behind_calls(
        self,
        calls: tuple[Call, ...],
        new: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]],
    ) -> str | None:
        said = _MARK if self._text_first or not calls else ""
        before = [ChatMessage("user", "?"), ChatMessage("assistant", said, calls)]
        tools = tools if self._announces else ()
        try:
            text = self._text([*before, *new], tools, go_on=True)
            answer = self._text(before, tools, go_on=False) if calls else ""
        except TemplateError:
            return None
        if said:
            if text.count(_MARK) != 1:
                return None
            text, answer = text.partition(_MARK)[2], answer.partition(_MARK)[2]
        if calls:
            text = text[self._end_of_turn(text[: common_prefix(text, answer)]) :]
        return text

    def _end_of_turn(self, text: str) -> int:
        """Where the end of the turn begins that ``text`` ends with; its length without one."""
        stem = text.rstrip()
        ends = [end for end in self._turn_ends if stem.endswith(end)]
        return len(stem) - max(map(len, ends)) if ends else len(text)

    @property
    def parses(self) -> bool:
        """Whether answers are read by a template of what they look like, and so as a whole."""
        return self._template is not None

    def reply(
        self, text: str, context: Sequence[int], tools: Sequence[Mapping[str, Any]]
    ) -> ChatMessage:
        """The assistant's message that a completion is, its tool calls read.

        They are read by the tokenizer's own ``response_template`` or its family's
        (:mod:`.families`), which transformers applies, and in the format of Hermes and Qwen
        where there is none (:func:`read_reply`). What cannot be read stays text.
        """
        tokenizer = self._codec.tokenizer
        own, template = self._own_template, self._template
        if not (tools and template):
            return read_reply(text, tools=bool(tools))
        prefix = self._codec.decode(context) if own else ""  # what the answer's opening says
        try:
            found = tokenizer.parse_response(text, template, prefix=prefix, tools=list(tools))
            functions = [call.get("function", call) for call in found.get("tool_calls") or ()]
            calls = tuple(Call(str(f["name"]), f.get("arguments") or {}) for f in functions)
        except (ValueError, KeyError, TypeError, AttributeError):  # no call that can be read
            return ChatMessage("assistant", text)
        if not calls or not (own or is_whole(text, len(calls), template)):
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
            role = "system" if self._takes_system else "user"
            messages, tools = _announced(messages, tools, role), ()
        listed = self._as_dicts(messages)
        return self._codec.template_text(listed, add_generation_prompt=go_on, tools=list(tools))

    def _as_dicts(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """Messages as templates expect them; what the model did not write is made harmless.

        Calls are numbered in the order in which they appear, because families disagree about
        what an identifier may look like. A result without one belongs to the first call that
        has none yet.
        """
        numbers = _Numbers()
        found: list[dict[str, Any]] = []
        for message, last in zip(messages, (None, *messages), strict=False):
            made = self._as_dict(message, numbers)
            if last is not None and last.role == message.role == "tool" and not self._calls:
                found[-1]["content"] += "\n" + made["content"]
            else:
                found.append(made)
        return found

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
        probe: dict[str, Any] = {"name": "probe_of_the_template", "arguments": {}}
        described = {"type": "function", "function": {**probe, "description": "", "parameters": {}}}
        call = {"type": "function", "id": "call00000", "function": probe}
        user: dict[str, Any] = {"role": "user", "content": "?"}
        answer: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
        system = {"role": "system", "content": probe["name"]}
        probes = {"tools": [user], "calls": [user, answer], "system": [system, user]}
        probes["text before calls"] = [user, answer | {"content": _MARK}]
        try:
            text = self._codec.template_text(
                probes[what],
                add_generation_prompt=False,
                tools=[described] if what == "tools" else [],
            )
        except TemplateError:
            return False
        if what == "text before calls":
            text = text.partition(_MARK)[2]
        return "probe_of_the_template" in text

    def _ends_of_turns(self) -> tuple[str, ...]:
        """Control tokens behind an answer, or behind one that calls a tool."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        try:
            text = self._codec.template_text(turn, add_generation_prompt=False)
        except TemplateError:
            text = ""
        behind = text.rpartition(_MARK)[2].strip()
        return tuple(t for t in self._control if t == behind or t in _ENDS_OF_CALLS)


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
    messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], role: str
) -> list[ChatMessage]:
    """The conversation with the tools described in its system message, or the user's first."""
    text = in_words(tools)
    first = messages[0]
    if first.role != role:
        return [ChatMessage(role, text), *messages]
    both = (first.content, text) if role == "system" else (text, first.content)
    return [replace(first, content="\n\n".join(both)), *messages[1:]]


def in_words(tools: Sequence[Mapping[str, Any]]) -> str:
    """The announcement of tools for templates that write none."""
    listed = "\n".join(json.dumps(tool) for tool in tools)
    return (
        "You can call functions to help you answer. Their signatures:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and arguments as JSON between tags, then end your turn:\n"
        f'{_OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{_CLOSE}'
    )
