"""``/v1/responses``: OpenAI's newer protocol, read as a chat and written as its items.

What is here serves agents whose framework asks in no other way: text, functions as tools, and
``previous_response_id``. Streams, hosted tools and structured output are refused.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent_r1.messages import (
    Call,
    ChatMessage,
    parsed_arguments,
    read_content,
    read_messages,
)
from agent_r1.rollout.endpoint.session import Answer, Ask, Session, Tools
from agent_r1.rollout.endpoint.wire import BadRequest, Request, number_in, usage_of
from agent_r1.types import Finish


def read_response_request(body: object, session: Session) -> Request:
    """A parsed body as a request for a chat. Raises :class:`BadRequest`."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object")
    if body.get("stream"):
        raise BadRequest("'stream' is not supported by /v1/responses; /v1/chat/completions streams")
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type", "text") != "text":
        raise BadRequest("'text.format' is not supported: answers are free text")
    messages = [*_before(body.get("previous_response_id"), session), *_items(body.get("input"))]
    if isinstance(body.get("instructions"), str) and body["instructions"]:
        messages = [m for m in messages if m.role != "system" or m.name != _INSTRUCTIONS]
        messages.insert(0, ChatMessage("system", body["instructions"], name=_INSTRUCTIONS))
    if not messages:
        raise BadRequest("'input' must be text or a list with at least one item")
    ask = Ask(
        max_tokens=number_in(body, "max_output_tokens", whole=True),
        temperature=number_in(body, "temperature"),
        top_p=number_in(body, "top_p"),
    )
    model = str(body.get("model") or "")
    tools = _tools(body)
    return Request(True, model, tuple(messages), "", tools, ask, False, False, False)


_INSTRUCTIONS = "instructions"
"""Marks the system message that each request states anew."""


def _before(previous: object, session: Session) -> tuple[ChatMessage, ...]:
    if previous is None:
        return ()
    known = session.responses.get(str(previous))
    if known is None:
        raise BadRequest(f"there is no response {previous!r} to go on from")
    return known


def _items(given: object) -> Iterator[ChatMessage]:
    """Items as messages; what belongs to one turn of the assistant becomes one message."""
    if isinstance(given, str):
        yield ChatMessage("user", given)
        return
    if not isinstance(given, list):
        raise BadRequest("'input' must be text or a list of items")
    turn: ChatMessage | None = None
    for i, item in enumerate(given):
        message = _item(item, i)
        if message is None:
            continue
        if message.role == "assistant":
            turn = message if turn is None else _together(turn, message)
            continue
        if turn is not None:
            yield turn
            turn = None
        yield message
    if turn is not None:
        yield turn


def _together(first: ChatMessage, second: ChatMessage) -> ChatMessage:
    content = "\n".join(filter(None, (first.content, second.content)))
    return replace(first, content=content, calls=(*first.calls, *second.calls))


def _item(item: object, i: int) -> ChatMessage | None:
    if not isinstance(item, Mapping):
        raise BadRequest(f"input[{i}] must be an object")
    match item.get("type", "message"):
        case "message":
            return read_messages([item])[0]
        case "function_call":
            arguments = parsed_arguments(item.get("arguments") or "{}")
            return ChatMessage("assistant", "", (Call(str(item.get("name")), arguments),))
        case "function_call_output":
            output = read_content(item.get("output"), f"input[{i}].output")
            return ChatMessage("tool", output, call_id=item.get("call_id"))
        case "reasoning":
            return None
        case kind:
            raise BadRequest(f"input[{i}]: items of type {kind!r} are not supported")


def _tools(body: Mapping[str, Any]) -> Tools:
    if body.get("tool_choice") == "none":
        return ()
    found = []
    for tool in body.get("tools") or ():
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise BadRequest("'tools' must be functions; hosted tools are not supported")
        keys = ("name", "description", "parameters")
        function = {key: tool[key] for key in keys if tool.get(key) is not None}
        found.append({"type": "function", "function": function})
    return tuple(found)


def as_response(answer: Answer, request: Request, session: Session) -> dict[str, Any]:
    """The answer as items, remembered so that it can be gone on from."""
    name = f"resp_{secrets.token_hex(12)}"
    session.keep_response(name, (*request.messages, answer.message))
    usage = usage_of(answer)
    cut = answer.completion.finish is Finish.LENGTH
    return {
        "id": name,
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "model": request.model,
        "output": _output(answer.message, "incomplete" if cut else "completed"),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "function", **tool["function"]} for tool in request.tools],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


def _output(message: ChatMessage, status: str) -> Sequence[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if message.content or not message.calls:
        text = {"type": "output_text", "text": message.content, "annotations": []}
        items.append(
            {
                "type": "message",
                "id": f"msg_{secrets.token_hex(8)}",
                "role": "assistant",
                "status": status,
                "content": [text],
            }
        )
    for call in message.calls:
        items.append(
            {
                "type": "function_call",
                "id": f"fc_{secrets.token_hex(8)}",
                "call_id": f"call_{secrets.token_hex(8)}",
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
                "status": "completed",
            }
        )
    return items
