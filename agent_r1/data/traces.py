"""Traces: complete episodes written down as text, from which a cold start learns.

A trace is a prompt and the segments that followed it, each written by the model or by a
tool. On disk it is one JSON object a line::

    {"prompt": "What is 7 * 191?" | [{"role": "user", "content": "..."}],
     "segments": [{"role": "model", "text": "..."}, {"role": "tool", "text": "..."}, ...],
     "source": "gsm8k"}

A line may instead carry ``messages``, a chat whose ``assistant`` turns the model wrote and
whose ``tool`` (or ``interpreter``) turns are the environment's words; everything before
the first of these is the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent_r1.errors import DataError
from agent_r1.registry import Registry
from agent_r1.types import Message


class Author(StrEnum):
    """Who wrote a segment: only the model's words are learned."""

    MODEL = "model"
    TOOL = "tool"


_CHAT_AUTHORS = {
    "assistant": Author.MODEL,
    "tool": Author.TOOL,
    "interpreter": Author.TOOL,
}


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text with one author."""

    author: Author
    text: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One episode as text. The model's end-of-sequence token follows the last segment."""

    prompt: tuple[Message, ...] | str
    segments: tuple[Segment, ...]
    source: str = "unknown"

    def __post_init__(self) -> None:
        if not self.segments or self.segments[-1].author is not Author.MODEL:
            raise DataError("a trace must end with a segment that the model wrote")
        if not self.prompt:
            raise DataError("a trace needs a prompt")

    @property
    def text(self) -> str:
        """All segments in order, for people to read."""
        return "".join(segment.text for segment in self.segments)


def model(text: str) -> Segment:
    return Segment(Author.MODEL, text)


def tool(text: str) -> Segment:
    return Segment(Author.TOOL, text)


def write_traces(path: str | Path, traces: Iterable[Trace]) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(_as_row(trace), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read a JSONL file of traces. Raises DataError that names file, line and field."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no trace file at {path}; give a JSONL file with one trace a line")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse_line(line, f"{path}:{number}")


def _parse_line(line: str, where: str) -> Trace:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f"expected a JSON object, not {type(row).__name__}")
        return trace_from_row(row)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); write one object a line") from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def trace_from_row(row: Mapping[str, Any]) -> Trace:
    """One parsed JSON object as a trace; see the module for the two accepted shapes."""
    source = str(row.get("source", "unknown"))
    if "messages" in row:
        return _from_messages(row["messages"], source)
    missing = [key for key in ("prompt", "segments") if key not in row]
    if missing:
        raise DataError(
            f"field {missing[0]!r} is missing (found {sorted(row)}); a trace has 'prompt' "
            "and 'segments', or 'messages'"
        )
    parts = row["segments"]
    if not isinstance(parts, list):
        raise DataError("'segments' must be a list of {'role': 'model' | 'tool', 'text': ...}")
    return Trace(_prompt(row["prompt"]), tuple(_segment(part) for part in parts), source)


def _prompt(value: Any) -> tuple[Message, ...] | str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(_is_message(message) for message in value):
        return tuple(value)
    raise DataError("'prompt' must be text or a list of {'role', 'content'} messages")


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _segment(part: Any) -> Segment:
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise DataError(f"a segment is {{'role': 'model' | 'tool', 'text': ...}}, not {part!r}")
    try:
        return Segment(Author(str(part.get("role"))), part["text"])
    except ValueError:
        raise DataError(
            f"segment role {part.get('role')!r} is unknown; use 'model' or 'tool'"
        ) from None


def _from_messages(messages: Any, source: str) -> Trace:
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise DataError("'messages' must be a list of {'role', 'content'} objects")
    first = next((i for i, m in enumerate(messages) if m["role"] in _CHAT_AUTHORS), len(messages))
    segments = []
    for message in messages[first:]:
        author = _CHAT_AUTHORS.get(message["role"])
        if author is None:
            raise DataError(
                f"a {message['role']!r} turn after the first answer cannot be placed; "
                "split the conversation into one trace per question"
            )
        segments.append(Segment(author, message["content"]))
    return Trace(tuple(messages[:first]), tuple(segments), source)


def _as_row(trace: Trace) -> dict[str, Any]:
    prompt = trace.prompt if isinstance(trace.prompt, str) else [dict(m) for m in trace.prompt]
    segments = [{"role": str(part.author), "text": part.text} for part in trace.segments]
    return {"prompt": prompt, "segments": segments, "source": trace.source}


TRACE_GENERATORS: Registry[Callable[..., Iterable[Trace]]] = Registry(
    "trace generator",
    group="agent_r1.traces",
    builtin={"arithmetic": "agent_r1.recipes.arithmetic:traces"},
    check=lambda entry: None if callable(entry) else f"{entry!r} cannot be called",
)
"""Functions that make traces, usable as ``generator:NAME``; ``seed`` is always passed."""
