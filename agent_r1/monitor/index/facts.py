"""What is known of a trajectory at a glance: a packed row of numbers, a few strings, its words.

A million rows of numbers take about 100 MB, so that a reader holds all of them in memory and
filters, sorts and counts with numpy.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agent_r1.errors import DataError
from agent_r1.messages import in_words

FACTS = np.dtype(
    [
        ("step", "<i4"),
        ("sibling", "<i4"),
        ("turns", "<i4"),
        ("tokens", "<i4"),  # that the model wrote
        ("length", "<i4"),  # first prompt, model and environment
        ("tool_calls", "<i4"),
        ("tool_errors", "<i4"),
        ("staleness", "<i4"),  # updates between the oldest token's policy and the step's
        ("split", "<u2"),  # these four are numbers of names
        ("outcome", "<u2"),
        ("environment", "<u2"),
        ("source", "<u2"),
        ("seconds", "<f4"),
        ("success", "i1"),  # 1, 0, or -1: not scored
        ("reward", "<f8"),  # NaN: not scored
        ("group", "<u8"),  # hash of split, step and group
        ("place", "<i8"),  # where the record begins, in the terms of its source
        ("size", "<i4"),
        ("check", "<u4"),  # of the record as it is written: tells whether it is still that one
        ("document", "<i8"),  # number in the full-text index; ascends, and is never used again
    ]
)

EXCERPT = 160
"""Characters of a trajectory's end that lists show."""

_SPACES = re.compile(r"\s+")


class _Call(msgspec.Struct):
    success: bool


class _Turn(msgspec.Struct):
    """The parts of a turn that count; ids are not decoded, for there are thousands."""

    token_ids: msgspec.Raw
    text: str
    observation_ids: msgspec.Raw
    observation_text: str
    tool_calls: list[_Call]
    prompt_ids: msgspec.Raw = msgspec.Raw(b"null")
    counted: int | None = None
    versions: list[tuple[int, int]] | None = None
    policy_version: int = 0


class _Task(msgspec.Struct):
    id: str
    prompt: Any
    data_source: str = "unknown"
    env: str = ""


class _Reward(msgspec.Struct):
    value: float
    parts: dict[str, Any] = {}


class _Record(msgspec.Struct):
    step: int
    split: str
    group_id: str
    index: int
    outcome: str
    task: _Task
    turns: list[_Turn]
    reward: _Reward | None = None
    error: str | None = None
    seconds: float | str = 0.0
    opening: str = ""


_DECODER = msgspec.json.Decoder(_Record)


class Described(NamedTuple):
    """``numbers``: fields of :data:`FACTS` other than names and places. ``text`` is all of it."""

    numbers: dict[str, float]
    names: dict[str, str]
    task: str
    group_id: str
    excerpt: str
    text: str


def describe(line: bytes, environment: str = "") -> Described:
    """What is known at a glance of one line of ``trajectories.jsonl``.

    ``environment`` is the run's; a task names its own where a run has several.

    Raises:
        DataError: the line is no trajectory.
    """
    try:
        record = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        record = _odd_record(line, error)
    return Described(
        numbers=_numbers(record),
        names={
            "split": record.split,
            "outcome": record.outcome,
            "environment": record.task.env or environment,
            "source": record.task.data_source,
        },
        task=record.task.id,
        group_id=record.group_id,
        excerpt=_excerpt(record),
        text=_text(record),
    )


def _odd_record(line: bytes, error: Exception) -> _Record:
    """Lines with halves of surrogate pairs, which strict decoders refuse."""
    try:
        plain = json.loads(line)
        text = json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")
        return _DECODER.decode(text)
    except (ValueError, msgspec.DecodeError):
        raise DataError(f"a line is no trajectory: {error}") from error


def _numbers(record: _Record) -> dict[str, float]:
    turns, reward = record.turns, record.reward
    calls = [call.success for turn in turns for call in turn.tool_calls]
    seen = [_count(turn.observation_ids) for turn in turns]
    written = [_count(turn.token_ids) if t is None else t for t, turn in _counted(turns)]
    group = f"{record.split}/{record.step}/{record.group_id}".encode("utf-8", "replace")
    oldest = min((_oldest(turn) for turn in turns), default=record.step)
    sampler = record.step - (record.split == "train")  # a step trains what the one before made
    return {
        "step": record.step,
        "sibling": record.index,
        "turns": len(turns),
        "tokens": sum(written),
        "length": (_count(turns[0].prompt_ids) if turns else 0) + sum(written) + sum(seen),
        "tool_calls": len(calls),
        "tool_errors": calls.count(False),
        "staleness": max(0, sampler - oldest),
        "seconds": float(record.seconds),
        "success": -1 if reward is None else int(_solved(reward)),
        "reward": float("nan") if reward is None else reward.value,
        "group": int.from_bytes(blake2b(group, digest_size=8).digest(), "little"),
    }


def _counted(turns: list[_Turn]) -> list[tuple[int | None, _Turn]]:
    return [(turn.counted, turn) for turn in turns]


def _oldest(turn: _Turn) -> int:
    if turn.versions is None:
        return turn.policy_version
    return min(version for _, version in turn.versions)


def _solved(reward: _Reward) -> bool:
    """As :func:`agent_r1.monitor.metrics.succeeded` has it."""
    return float(reward.parts.get("accuracy", reward.value)) > 0


def _count(raw: msgspec.Raw) -> int:
    """How many numbers a JSON array has; a number stands for that many, and ``null`` for none."""
    data = bytes(raw)
    if data.isdigit():
        return int(data)
    return data.count(b",") + 1 if len(data) > 2 and data[0] == 91 else 0


def _prompt_texts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    return [in_words(message) for message in prompt or ()]


def _excerpt(record: _Record) -> str:
    """The end of what the model wrote last, else the error; one line."""
    last = record.turns[-1].text if record.turns else ""
    text = _SPACES.sub(" ", last[-4 * EXCERPT :]).strip()
    return text[-EXCERPT:] or (record.error or "")[:EXCERPT]


def _text(record: _Record) -> str:
    texts = [*_prompt_texts(record.task.prompt), record.opening, record.task.id]
    for turn in record.turns:
        texts += [turn.text, turn.observation_text]
    return "\n".join([*texts, record.error or ""])
