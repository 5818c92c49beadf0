"""Trajectories as lines of ``trajectories.jsonl``, and back.

A line holds the whole trajectory::

    {"format": 1, "step": 7, "split": "train", "id": "7.0.3:task-12/0",
     "group_id": …, "index": …, "outcome": "finished", "error": null, "seconds": 1.9,
     "task": {"id", "prompt", "answer", "data_source", "extra"},
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

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

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

Split = Literal["train", "val"]


class StoredTrajectory(NamedTuple):
    """A trajectory with where in the run it was sampled."""

    trajectory: Trajectory
    step: int
    split: str


def load_trajectories(path: Path | str) -> Iterator[Trajectory]:
    """The trajectories of a file, exactly as they were stored.

    Raises:
        DataError: the file is missing or damaged before its last line.
    """
    return (stored.trajectory for stored in read_stored(path))


def read_stored(path: Path | str) -> Iterator[StoredTrajectory]:
    """Like :func:`load_trajectories`, with the step and the split of each."""
    for number, record in enumerate(read_jsonl(path), start=1):
        try:
            yield StoredTrajectory(decode_trajectory(record), record["step"], record["split"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number} is no trajectory of format {FORMAT}: {error!r}"
            ) from error


def encode_trajectory(trajectory: Trajectory, *, step: int, split: Split) -> dict[str, Any]:
    """The JSON object of one line."""
    task, reward = trajectory.task, trajectory.reward
    previous = [None, *trajectory.turns]
    return {
        "format": FORMAT,
        "step": step,
        "split": split,
        "id": trajectory.id,
        "group_id": trajectory.group_id,
        "index": trajectory.index,
        "outcome": trajectory.outcome.value,
        "error": trajectory.error,
        "seconds": json_number(trajectory.seconds),
        "state": trajectory.state,
        "opening": trajectory.opening,
        "task": {
            "id": task.id,
            "prompt": task.prompt,
            "answer": task.answer,
            "data_source": task.data_source,
            "extra": task.extra,
            "tools": task.tools,
        },
        "reward": None if reward is None else _encode_reward(reward),
        "turns": [
            _encode_turn(turn, before)
            for turn, before in zip(trajectory.turns, previous, strict=False)
        ],
        "loss_mask": [_runs(sample.loss_mask) for sample in trajectory.samples()],
    }


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
        "parts": dict(reward.parts),
        "per_turn": None if reward.per_turn is None else list(reward.per_turn),
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


def _encode_turn(turn: Turn, before: Turn | None) -> dict[str, Any]:
    completion = turn.completion
    continues = before is not None and turn.prompt_ids == before.next_prompt_ids
    return {
        "prompt_ids": None if continues else turn.prompt_ids,
        "token_ids": completion.token_ids,
        "logprobs": None
        if completion.logprobs is None
        else [json_number(value) for value in completion.logprobs],
        "counted": completion.counted,
        "finish": completion.finish.value,
        "stop": completion.stop,
        "versions": completion.versions,
        "text": turn.text,
        "observation_ids": turn.observation_ids,
        "observation_text": turn.observation_text,
        "tool_calls": [
            {"success": call.success, "seconds": json_number(call.seconds)}
            for call in turn.tool_calls
        ],
        "generate_seconds": json_number(turn.generate_seconds),
        "tool_seconds": json_number(turn.tool_seconds),
        "reward": turn.reward,
    }


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
    )


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    return [(value, sum(1 for _ in run)) for value, run in groupby(mask)]
