"""Trajectories as JSON objects, and back.

The object is a line of ``trajectories.jsonl``, and what ``trajectories.arrows`` gives back; a
run has the one or the other. It holds the whole trajectory::

    {"format": 1, "step": 7, "split": "train", "id": "7.0.3:task-12/0",
     "group_id": …, "index": …, "outcome": "finished", "error": null, "seconds": 1.9,
     "task": {"id", "prompt", "answer", "data_source", "extra", "env"},
     "reward": {"value", "parts": {…}, "per_turn": [...] | null} | null,
     "turns": [{"prompt_ids": [...] | null, "token_ids", "logprobs", "counted", "finish",
                "stop", "versions": [[0, 7], …], "text", "observation_ids", "observation_text",
                "tool_calls": [{"success", "seconds"}], "generate_seconds", "tool_seconds"}],
     "loss_mask": [[[0, 57], [1, 33], …], …]}

``logprobs`` is null where a server gave none; ``counted`` is null unless ``token_ids`` are
characters, and then says how many tokens they were. ``prompt_ids`` is null where the turn
continues the one before (prompt, action and observation, in that order), so that a line
grows with the tokens and not with their square. ``versions`` are runs of ``[first token,
version of the policy that sampled it]``.
``loss_mask`` is the mask of each training sample in runs of ``[value, length]``; it follows
from the turns and stands there for readers in other languages. Numbers that JSON lacks
(NaN, infinities) are text. A task's answer and extras come back as JSON values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from agent_r1.errors import DataError
from agent_r1.monitor.jsonl import json_number, read_jsonl
from agent_r1.types import (
    Completion,
    Finish,
    Outcome,
    Reward,
    Task,
    ToolCall,
    Trajectory,
    Turn,
    Versions,
)

FORMAT = 1

TRAJECTORIES_FILE = "trajectories.jsonl"
ARROWS_FILE = "trajectories.arrows"
"""See ``monitor/arrows.py``."""

Split = Literal["train", "val"]


class TurnShell(msgspec.Struct, gc=False):
    """A turn as the file has it. Without tokens until they are filled in."""

    prompt_ids: Any
    """None where it continues the turn before."""
    token_ids: Any
    logprobs: Any
    counted: int | None
    finish: Finish
    stop: str | None
    versions: Versions
    text: str
    observation_ids: Any
    observation_text: str
    tool_calls: list[dict[str, Any]]
    generate_seconds: float | str
    tool_seconds: float | str
    reward: float | None


class Shell(msgspec.Struct, gc=False):
    """A trajectory as the file has it, but for its tokens and masks.

    Structs are built and encoded in two thirds of the time of dictionaries.
    """

    format: int
    step: int
    split: Split
    id: str
    group_id: str
    index: int
    outcome: Outcome
    error: str | None
    seconds: float | str
    state: Any
    opening: str
    task: dict[str, Any]
    reward: dict[str, Any] | None
    turns: list[TurnShell]


class StoredTrajectory(NamedTuple):
    """A trajectory with where in the run it was sampled."""

    trajectory: Trajectory
    step: int
    split: str


class Stored(NamedTuple):
    """A trajectory on its way to the file."""

    trajectory: Trajectory
    step: int
    split: Split


def load_trajectories(path: Path | str) -> Iterator[Trajectory]:
    """The trajectories of a file or of the folder that holds it, exactly as they were stored.

    Raises:
        DataError: the file is missing or damaged before its last line.
    """
    return (stored.trajectory for stored in read_stored(path))


def read_stored(path: Path | str) -> Iterator[StoredTrajectory]:
    """Like :func:`load_trajectories`, with the step and the split of each."""
    for number, record in enumerate(read_records(path), start=1):
        try:
            yield StoredTrajectory(decode_trajectory(record), record["step"], record["split"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, record {number} is no trajectory of format {FORMAT}: {error!r}"
            ) from error


def read_records(path: Path | str) -> Iterator[dict[str, Any]]:
    """The records of a file, or of the folder that holds it, as they were stored.

    Raises:
        DataError: the file is missing or damaged before its end.
    """
    file = trajectories_file(Path(path))
    if file.suffix != ".arrows":
        return read_jsonl(file)
    from agent_r1.monitor.arrows import read_arrows  # pyarrow takes a while to import

    return read_arrows(file)


def trajectories_file(path: Path) -> Path:
    """The file of a folder that has one, in whichever form; a file stands for itself.

    ``trajectories.jsonl`` where there is none stands for ``trajectories.arrows`` beside it, so
    that what asks for the one finds the other.
    """
    folder = path if path.is_dir() else path.parent
    arrows = folder / ARROWS_FILE
    if path.is_dir():
        return arrows if arrows.is_file() else folder / TRAJECTORIES_FILE
    missing = path.name == TRAJECTORIES_FILE and not path.exists()
    return arrows if missing and arrows.is_file() else path


def encode_trajectory(trajectory: Trajectory, *, step: int, split: Split) -> dict[str, Any]:
    """The JSON object of one line."""
    shell = encode_shell(trajectory, step=step, split=split)
    for turn, told in zip(trajectory.turns, shell.turns, strict=True):
        if told.prompt_ids is not None:
            told.prompt_ids = turn.prompt_ids
        told.token_ids = turn.completion.token_ids
        told.logprobs = json_numbers(turn.completion.logprobs)
        told.observation_ids = turn.observation_ids
    turns = [msgspec.structs.asdict(told) for told in shell.turns]
    return with_loss_mask(msgspec.structs.asdict(shell) | {"turns": turns})


def with_loss_mask(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the masks of its samples, which follow from its turns."""
    masks: list[list[tuple[int, int]]] = []
    for turn in record["turns"]:
        if turn["prompt_ids"] is not None:
            masks.append([(0, len(turn["prompt_ids"]))])
        masks[-1] += [(1, len(turn["token_ids"])), (0, len(turn["observation_ids"]))]
    # The observation after the last action of a sample is no part of it: see Trajectory.samples.
    return record | {"loss_mask": [_joined(mask[:-1]) for mask in masks]}


def encode_shell(trajectory: Trajectory, *, step: int, split: Split) -> Shell:
    """What does not grow with the number of tokens.

    ``prompt_ids`` of a turn is None where it continues the one before, else empty.
    """
    task, reward = trajectory.task, trajectory.reward
    previous = [None, *trajectory.turns]
    return Shell(
        format=FORMAT,
        step=step,
        split=split,
        id=trajectory.id,
        group_id=trajectory.group_id,
        index=trajectory.index,
        outcome=trajectory.outcome,
        error=trajectory.error,
        seconds=json_number(trajectory.seconds),
        state=trajectory.state,
        opening=trajectory.opening,
        task={
            "id": task.id,
            "prompt": task.prompt,
            "answer": task.answer,
            "data_source": task.data_source,
            "extra": task.extra,
            "tools": task.tools,
            "env": task.env,
        },
        reward=None if reward is None else _encode_reward(reward),
        turns=[
            _encode_turn(turn, before)
            for turn, before in zip(trajectory.turns, previous, strict=False)
        ],
    )


def decode_trajectory(record: Mapping[str, Any]) -> Trajectory:
    """The inverse of :func:`encode_trajectory`."""
    if record["format"] != FORMAT:
        raise ValueError(f"it has format {record['format']}")
    turns: list[Turn] = []
    for turn in record["turns"]:
        turns.append(_decode_turn(turn, turns[-1] if turns else None))
    return Trajectory(
        task=_decode_task(record["task"]),
        group_id=record["group_id"],
        index=record["index"],
        turns=tuple(turns),
        outcome=Outcome(record["outcome"]),
        reward=_decode_reward(record["reward"]),
        error=record["error"],
        seconds=float(record["seconds"]),
        state=record.get("state"),
        opening=record.get("opening", ""),
    )


def _encode_reward(reward: Reward) -> dict[str, Any]:
    return {
        "value": reward.value,
        "parts": reward.parts,
        "per_turn": reward.per_turn,
    }


def _decode_reward(record: Mapping[str, Any] | None) -> Reward | None:
    if record is None:
        return None
    per_turn = record["per_turn"]
    return Reward(
        value=float(record["value"]),
        parts={name: float(value) for name, value in record["parts"].items()},
        per_turn=None if per_turn is None else _floats(per_turn),
    )


def _encode_turn(turn: Turn, before: Turn | None) -> TurnShell:
    completion = turn.completion
    continues = before is not None and turn.prompt_ids == before.next_prompt_ids
    return TurnShell(
        prompt_ids=None if continues else (),
        token_ids=(),
        logprobs=None,
        counted=completion.counted,
        finish=completion.finish,
        stop=completion.stop,
        versions=completion.versions,
        text=turn.text,
        observation_ids=(),
        observation_text=turn.observation_text,
        tool_calls=[
            {"success": call.success, "seconds": json_number(call.seconds)}
            for call in turn.tool_calls
        ],
        generate_seconds=json_number(turn.generate_seconds),
        tool_seconds=json_number(turn.tool_seconds),
        reward=turn.reward,
    )


def json_numbers(values: Sequence[float] | None) -> Sequence[float | str] | None:
    """Many of :func:`json_number`, quickly where all of them are finite."""
    if values is None or math.isfinite(sum(map(abs, values))):
        return values
    return [json_number(value) for value in values]


def _decode_turn(record: Mapping[str, Any], before: Turn | None) -> Turn:
    prompt = record["prompt_ids"]
    if prompt is None and before is None:
        raise ValueError("the first turn has no prompt_ids")
    return Turn(
        prompt_ids=before.next_prompt_ids if prompt is None and before else tuple(prompt),
        completion=Completion(
            token_ids=tuple(record["token_ids"]),
            logprobs=None if record["logprobs"] is None else _floats(record["logprobs"]),
            finish=Finish(record["finish"]),
            versions=_decode_versions(record),
            stop=record["stop"],
            counted=record.get("counted"),
        ),
        text=record["text"],
        observation_ids=tuple(record["observation_ids"]),
        observation_text=record["observation_text"],
        tool_calls=tuple(
            ToolCall(call["success"], float(call["seconds"])) for call in record["tool_calls"]
        ),
        generate_seconds=float(record["generate_seconds"]),
        tool_seconds=float(record["tool_seconds"]),
        reward=record.get("reward"),
    )


def _decode_versions(record: Mapping[str, Any]) -> Versions:
    """Files of before have one version for a whole completion."""
    runs = record["versions"] if "versions" in record else [(0, record["policy_version"])]
    return tuple((int(first), int(version)) for first, version in runs)


def _decode_task(record: Mapping[str, Any]) -> Task:
    prompt = record["prompt"]
    return Task(
        id=record["id"],
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        answer=record["answer"],
        data_source=record["data_source"],
        extra=record["extra"],
        tools=tuple(record.get("tools", ())),
        env=record.get("env", ""),
    )


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _joined(runs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Runs of ``[value, length]``, none of them empty and no two neighbours of one value."""
    joined: list[list[int]] = []
    for value, length in runs:
        if joined and joined[-1][0] == value:
            joined[-1][1] += length
        elif length:
            joined.append([value, length])
    return joined
