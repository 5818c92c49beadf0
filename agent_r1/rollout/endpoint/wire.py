"""Requests and answers of OpenAI's protocol, as JSON and as event streams."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_r1.errors import AgentR1Error
from agent_r1.messages import Call, ChatMessage, read_messages
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.session import Answer, Ask, Tools
from agent_r1.types import Finish


class BadRequest(AgentR1Error):
    """A request asks for something that is wrong or not supported; the message says what."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the endpoint obeys of a request; the rest of the protocol it refuses or ignores."""

    chat: bool
    model: str
    messages: tuple[ChatMessage, ...]
    prompt: str | tuple[int, ...]
    tools: Tools
    ask: Ask
    stream: bool
    include_usage: bool
    logprobs: bool


def read_request(body: object, *, chat: bool) -> Request:
    """A parsed body as a request. Raises :class:`BadRequest`."""
    if not isinstance(body, Mapping):
        raise BadRequest("the body must be a JSON object")
    if body.get("n") not in (None, 1):
        raise BadRequest("'n' must be 1: ask several times, each answer is a branch")
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type", "text") != "text":
        raise BadRequest("'response_format' is not supported: answers are free text")
    return Request(
        chat=chat,
        model=str(body.get("model") or ""),
        messages=read_messages(body.get("messages")) if chat else (),
        prompt="" if chat else _prompt(body.get("prompt")),
        tools=_tools(body) if chat else (),
        ask=Ask(
            max_tokens=number_in(body, "max_completion_tokens", "max_tokens", whole=True),
            stop=_stop(body.get("stop")),
            temperature=number_in(body, "temperature"),
            top_p=number_in(body, "top_p"),
        ),
        stream=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        logprobs=body.get("logprobs") not in (None, False),
    )


def _prompt(given: object) -> str | tuple[int, ...]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str) and given:
        return given
    if isinstance(given, list) and given and all(isinstance(i, int) for i in given):
        return tuple(given)
    raise BadRequest("'prompt' must be one text or one list of token ids, and not empty")


def _tools(body: Mapping[str, Any]) -> Tools:
    if body.get("tool_choice") == "none":
        return ()
    tools = body.get("tools") or ()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRequest("'tools' must be functions: {type: function, function: {name: ...}}")
    return tuple({"type": "function", "function": dict(tool["function"])} for tool in tools)


def _stop(given: object) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())  # type: ignore[arg-type]
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise BadRequest("'stop' must be text or a list of texts")
    return stops


def number_in(body: Mapping[str, Any], *names: str, whole: bool = False) -> Any:
    """The first of these numbers that is given, or None. Raises :class:`BadRequest`."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(f"{name!r} must be a number")
        if value < 0 or (whole and value < 1) or (name == "top_p" and not 0 < value <= 1):
            raise BadRequest(f"{name!r} is out of range")
        return int(value) if whole else float(value)
    return None


# --- answers -----------------------------------------------------------------------------


def finish_reason(answer: Answer) -> str:
    if answer.message.calls:
        return "tool_calls"
    return "length" if answer.completion.finish is Finish.LENGTH else "stop"


def usage_of(answer: Answer) -> dict[str, int]:
    prompt, written = len(answer.node.prompt_ids), answer.completion.length
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }


def as_json(answer: Answer, request: Request, codec: Codec) -> dict[str, Any]:
    """The whole answer in one object."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(answer)}
    if request.chat:
        message: dict[str, Any] = {"role": "assistant", "content": answer.message.content}
        if answer.message.calls:
            message["content"] = answer.message.content or None
            message["tool_calls"] = _calls(answer.message.calls)
        choice["message"] = message
        choice["logprobs"] = _logprobs(answer, codec) if request.logprobs else None
    else:
        choice["text"] = answer.text
        choice["logprobs"] = _plain_logprobs(answer, codec) if request.logprobs else None
    return {
        **_head(request, "chat.completion" if request.chat else "text_completion"),
        "choices": [choice],
        "usage": usage_of(answer),
    }


def _calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{secrets.token_hex(8)}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]


def _tokens(answer: Answer, codec: Codec) -> Iterator[tuple[str, float]]:
    logprobs = answer.completion.logprobs or ()
    for token, logprob in zip(answer.completion.token_ids, logprobs, strict=False):
        yield codec.decode([token]), logprob


def _logprobs(answer: Answer, codec: Codec) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": text,
                "logprob": logprob,
                "bytes": list(text.encode()),
                "top_logprobs": [],
            }
            for text, logprob in _tokens(answer, codec)
        ]
    }


def _plain_logprobs(answer: Answer, codec: Codec) -> dict[str, Any]:
    pairs = list(_tokens(answer, codec))
    return {"tokens": [t for t, _ in pairs], "token_logprobs": [lp for _, lp in pairs]}


def _head(request: Request, kind: str) -> dict[str, Any]:
    return {
        "id": f"{'chatcmpl' if request.chat else 'cmpl'}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


class EventStream:
    """The events of one streamed answer, in order: pieces, what is missing, the end."""

    def __init__(self, request: Request) -> None:
        self._request = request
        kind = "chat.completion.chunk" if request.chat else "text_completion"
        self._head = _head(request, kind)
        self._shown = ""

    def begin(self) -> Iterator[bytes]:
        if self._request.chat:
            yield self._event({"delta": {"role": "assistant", "content": ""}})

    def piece(self, text: str) -> Iterator[bytes]:
        self._shown += text
        key = {"delta": {"content": text}} if self._request.chat else {"text": text}
        yield self._event(key)

    def end(self, answer: Answer) -> Iterator[bytes]:
        """What the pieces did not show, the calls, why it ended, and the usage if asked for."""
        whole = answer.message.content if self._request.chat else answer.text
        if whole.startswith(self._shown) and len(whole) > len(self._shown):
            yield from self.piece(whole[len(self._shown) :])
        if self._request.chat and answer.message.calls:
            calls = [{"index": i, **c} for i, c in enumerate(_calls(answer.message.calls))]
            yield self._event({"delta": {"tool_calls": calls}})
        rest: dict[str, Any] = {"delta": {}} if self._request.chat else {"text": ""}
        yield self._event(rest, finish=finish_reason(answer))
        if self._request.include_usage:
            yield _data({**self._head, "choices": [], "usage": usage_of(answer)})
        yield b"data: [DONE]\n\n"

    def fail(self, error: Mapping[str, Any]) -> Iterator[bytes]:
        yield _data(error)

    def _event(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "logprobs": None, "finish_reason": finish, **delta}
        return _data({**self._head, "choices": [choice]})


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
