r"""Published forms of tool-use conversations, read as traces.

What decides everything is who wrote which characters: only the model's own are learned.

* **Inline observations** (ReTool-SFT and its like): one assistant message holds thinking,
  calls, ``<interpreter>`` blocks and the answer. The blocks are split off by their tags.
* **Tool calls** (OpenAI's ``tool_calls`` with ``tool`` messages, Hermes' ``<tool_call>`` tags,
  and ShareGPT's ``from``/``value`` names for either): the messages are kept as they are, and the
  model's chat template writes them; see :func:`agent_r1.trainer.sft_chat.chat_segments`.

A conversation in which the tool's words cannot be told from the model's is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.errors import DataError

OBSERVATION_TAGS = ("interpreter", "information", "observation", "tool_response")
"""Tags between which a tool's words stand inside a message of the model."""

_NAMES = "|".join(OBSERVATION_TAGS)
_OBSERVATION = re.compile(rf"\s*<(?P<tag>{_NAMES})>(?P<inner>.*?)</(?P=tag)>\n?", re.DOTALL)
_TAG = re.compile(rf"</?(?:{_NAMES})>")
_ANSWERED = re.compile(r"(?:</(?:code|search|tool_call|python)>|```)\s*\Z")
_CALL_END = re.compile(r"</(?:code|search)>")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
"""ShareGPT's names, and others, for the roles of OpenAI's form."""


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The conversation of a row in OpenAI's form; ``None`` if it holds none.

    Raises:
        DataError: what is there is no list of messages.
    """
    for key in ("messages", "conversations", "conversation"):
        if row.get(key) is not None:
            return [_message(m, key) for m in _listed(row[key], key)]
    return None


def tools_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row announces: a list, or its JSON text."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _parsed(tools)
    if not isinstance(tools, list):
        return ()
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool}
        for tool in tools
        if isinstance(tool, Mapping)
    )


def needs_template(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Only the chat template knows how this conversation was meant to be written.

    So it is with tool calls apart from the text, with Hermes' tags, and where a user or a
    system speaks after the model did.
    """
    spoken = [m["role"] for m in messages]
    first = spoken.index("assistant") if "assistant" in spoken else len(spoken)
    return (
        any(m.get("tool_calls") for m in messages)
        or "user" in spoken[first:]
        or ("tool" in spoken and any("<tool_call>" in m["content"] for m in messages))
    )


def split_inline(text: str) -> list[tuple[bool, str]]:
    """Pieces of a message and whether the model wrote them; observations are split off.

    An observation is written as environments write it, on lines of its own.

    Raises:
        DataError: a tag is unpaired, or an observation answers nothing, or a call in the middle
            is answered by nothing: then it cannot be known who wrote what follows.
    """
    pieces: list[tuple[bool, str]] = []
    position = 0
    for match in _OBSERVATION.finditer(text):
        said = text[position : match.start()]
        if not _ANSWERED.search(said):
            raise DataError(
                f"<{match['tag']}> stands where no call ends, after {said[-40:]!r}: whether the "
                "model or a tool wrote it cannot be told"
            )
        tag, inner = match["tag"], match["inner"].strip("\n")
        pieces += [(True, said), (False, f"\n<{tag}>\n{inner}\n</{tag}>\n")]
        position = match.end()
    pieces.append((True, text[position:]))
    for own, piece in pieces:
        if own and (stray := _TAG.search(piece)):
            raise DataError(f"{stray[0]} has no partner: where the tool's words end is unknown")
        call = _CALL_END.search(piece) if own and pieces[1:] else None
        if call and piece[call.end() :].strip():
            raise DataError(
                f"a call that ends with {call[0]} is followed by text without an observation: "
                "who wrote what follows cannot be told"
            )
    if not pieces[-1][1].strip():
        raise DataError("the message ends with a tool's words; a trace ends with the model's")
    return pieces


def _listed(value: Any, key: str) -> list[Any]:
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) for m in value):
        raise DataError(f"{key!r} must be a list of messages such as {{'role', 'content'}} objects")
    return list(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _message(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One message with ``role`` and ``content``, whatever it calls them."""
    role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    calls = _calls(given.get("tool_calls"))
    if content is None and calls:
        content = ""
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{key!r} must be a list of {{'role', 'content'}} objects (or ShareGPT's 'from' and "
            f"'value'), each of them text; one is {dict(given)!r:.120}"
        )
    message: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content}
    if role == "function_call":
        message["content"] = f"<tool_call>\n{content}\n</tool_call>"
    if calls:
        message["tool_calls"] = calls
    kept = ("name", "tool_call_id", "reasoning_content")
    return message | {name: given[name] for name in kept if given.get(name) is not None}


def _calls(given: Any) -> list[dict[str, Any]]:
    """Tool calls with arguments as an object, as chat templates want them."""
    calls = []
    for call in given if isinstance(given, list | tuple) else ():
        function = dict(call.get("function") or call)
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            parsed = _parsed(arguments)
            if not isinstance(parsed, dict):
                raise DataError(
                    f"the arguments of a tool call are no JSON object: {arguments!r:.80}"
                )
            function["arguments"] = parsed
        calls.append({"type": "function", "function": function})
    return calls


def _joined(parts: list[Any]) -> str:
    """Text parts as one text."""
    texts = [p.get("text") if isinstance(p, Mapping) else p for p in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("a message has parts that are not text; only text can be learned")
    return "".join(str(text) for text in texts)
