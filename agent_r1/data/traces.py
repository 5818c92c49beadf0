"""Traces: complete episodes written down as text, from which a cold start learns.

A trace is a prompt and the segments that followed it, each written by the model or by a
tool. On disk it is one JSON object a line::

    {"prompt": "What is 7 * 191?" | [{"role": "user", "content": "..."}],
     "segments": [{"role": "model", "text": "..."}, {"role": "tool", "text": "..."}, ...],
     "source": "gsm8k"}

A row may instead carry ``messages`` (or ShareGPT's ``conversations``), a chat whose
``assistant`` turns the model wrote and whose ``tool`` (or ``interpreter``) turns are the
environment's words; everything before the first of these is the prompt. See
:mod:`agent_r1.data.trace_forms` for the published forms that are read. Files may be JSONL, JSON
or Parquet, the text ones also ``.gz``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from agent_r1.data.sources_files import read_rows
from agent_r1.data.trace_forms import messages_of, needs_template, split_inline, tools_of
from agent_r1.errors import DataError
from agent_r1.registry import Registry
from agent_r1.types import Message, Trajectory


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
    chat: tuple[Mapping[str, Any], ...] = ()
    """Instead of ``segments``: messages that the chat template is to write, prompt included."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools that the chat template announces."""

    def __post_init__(self) -> None:
        if self.chat:
            if self.chat[-1]["role"] != "assistant":
                raise DataError("a trace must end with a message that the model wrote")
        elif not self.segments or self.segments[-1].author is not Author.MODEL:
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


def trace_of(trajectory: Trajectory) -> Trace:
    """What the model and the tools wrote in a trajectory, as something to learn from.

    Raises:
        DataError: the trajectory has no turn.
    """
    segments: list[Segment] = []
    for turn in trajectory.turns[:-1]:
        segments.append(model(turn.text))
        if turn.observation_text:
            segments.append(tool(turn.observation_text))
    segments += [model(trajectory.final_text)] if trajectory.turns else []
    return Trace(trajectory.task.prompt, tuple(segments), trajectory.task.data_source)


def write_traces(path: str | Path, traces: Iterable[Trace]) -> int:
    """Write one JSON object a line; returns how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for trace in traces:
            file.write(json.dumps(as_row(trace), ensure_ascii=False) + "\n")
            count += 1
    return count


def append_trace(path: str | Path, trace: Trace) -> None:
    """Add one trace to a file, which is made if it is not there."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(as_row(trace), ensure_ascii=False) + "\n")


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read a file of traces. Raises DataError that names file, row and field."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no trace file at {path}; give a file with one trace a row")
    for row in read_rows(path):
        where = f"{path}:{row.number}"
        if row.values is None:
            raise DataError(f"{where}: {row.error}")
        try:
            yield trace_from_row(row.values)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def trace_from_row(row: Mapping[str, Any]) -> Trace:
    """One parsed JSON object as a trace; see the module for the two accepted shapes."""
    source = str(row.get("source", "unknown"))
    messages = messages_of(row)
    if messages is not None:
        return _from_messages(messages, source, tools_of(row))
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


def _from_messages(
    messages: list[dict[str, Any]], source: str, tools: tuple[Mapping[str, Any], ...]
) -> Trace:
    if needs_template(messages):
        first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        prompt = tuple(cast("Message", message) for message in messages[:first])
        return Trace(prompt, (), source, tuple(messages), tools)
    first = next((i for i, m in enumerate(messages) if m["role"] in _CHAT_AUTHORS), len(messages))
    segments = []
    for message in messages[first:]:
        author = _CHAT_AUTHORS.get(message["role"])
        if author is None:
            raise DataError(
                f"a {message['role']!r} turn after the first answer cannot be placed; "
                "split the conversation into one trace per question"
            )
        if author is Author.TOOL:
            segments.append(tool(message["content"]))
        else:
            pieces = split_inline(message["content"])
            segments += [(model if own else tool)(text) for own, text in pieces if text]
    return Trace(
        tuple(cast("Message", message) for message in messages[:first]), tuple(segments), source
    )


def as_row(trace: Trace) -> dict[str, Any]:
    """The JSON object that stands for a trace in a file."""
    prompt = trace.prompt if isinstance(trace.prompt, str) else [dict(m) for m in trace.prompt]
    segments = [{"role": str(part.author), "text": part.text} for part in trace.segments]
    if trace.chat:
        row = {"messages": [dict(m) for m in trace.chat], "source": trace.source}
        return row | ({"tools": [dict(t) for t in trace.tools]} if trace.tools else {})
    return {"prompt": prompt, "segments": segments, "source": trace.source}


TRACE_GENERATORS: Registry[Callable[..., Iterable[Trace]]] = Registry(
    "trace generator",
    group="agent_r1.traces",
    builtin={"arithmetic": "agent_r1.recipes.arithmetic:traces"},
    check=lambda entry: None if callable(entry) else f"{entry!r} cannot be called",
)
"""Functions that make traces, usable as ``generator:NAME``; ``seed`` is always passed."""
