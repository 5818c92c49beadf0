"""A stored trajectory as the page of one trajectory wants it. Plain data for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.monitor.records import decode_trajectory
from agent_r1.types import Trajectory, Turn
from agent_r1.viewer.spelling import Spelling


def shown(
    record: Mapping[str, Any],
    spelling: Spelling | None,
    seen: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The whole trajectory with its turns; tokens are told apart where they can be spelled.

    ``seen``: lists of what the update saw of each token (:mod:`agent_r1.monitor.tokens`).
    """
    trajectory = decode_trajectory(record)
    reward, task = trajectory.reward, trajectory.task
    return {
        "id": trajectory.id,
        "step": record["step"],
        "split": record["split"],
        "group": trajectory.group_id,
        "sibling": trajectory.index,
        "outcome": trajectory.outcome.value,
        "failed": trajectory.outcome.failed,
        "error": trajectory.error,
        "seconds": trajectory.seconds,
        "state": _plain(trajectory.state),
        "reward": None
        if reward is None
        else {
            "value": reward.value,
            "parts": dict(reward.parts),
            "per_turn": None if reward.per_turn is None else list(reward.per_turn),
        },
        "task": {
            "id": task.id,
            "source": task.data_source,
            "answer": _plain(task.answer),
            "extra": {str(name): _plain(value) for name, value in task.extra.items()},
        },
        "prompt": messages_of(trajectory),
        "opening": trajectory.opening,
        "turns": _turns(trajectory, seen or {}, spelling),
        "spelled": spelling is not None,
    }


def messages_of(trajectory: Trajectory) -> list[dict[str, str]]:
    """The messages that the task began with, as ``role`` and ``text``."""
    prompt = trajectory.task.prompt
    if isinstance(prompt, str):
        return [{"role": "prompt", "text": prompt}]
    return [{"role": str(m.get("role", "")), "text": _content(m)} for m in prompt]


def question_of(record: Mapping[str, Any], most: int = 300) -> str:
    """The beginning of the last message that a task's prompt holds."""
    prompt = record["task"]["prompt"]
    text = prompt if isinstance(prompt, str) else _content(prompt[-1]) if prompt else ""
    return text.strip()[:most]


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else _plain(content)
    calls = message.get("tool_calls")
    return text + (f"\n{_plain(calls)}" if calls else "")


def _turns(
    trajectory: Trajectory, seen: Mapping[str, Sequence[float]], spelling: Spelling | None
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    before: Turn | None = None
    at = 0
    for turn in trajectory.turns:
        begins = before is None or turn.prompt_ids != before.next_prompt_ids
        end = at + turn.completion.length
        made.append(_turn(turn, {n: list(seen[n][at:end]) for n in seen}, begins, spelling))
        before, at = turn, end
    return made


def _turn(
    turn: Turn, seen: Mapping[str, Any], begins: bool, spelling: Spelling | None
) -> dict[str, Any]:
    completion = turn.completion
    return {
        "text": turn.text,
        "tokens": _tokens(turn, seen, spelling),
        "length": completion.length,
        "finish": completion.finish.value,
        "stop": completion.stop,
        "versions": [list(run) for run in completion.versions],
        "begins": begins,
        "context": _spelled(turn.prompt_ids, spelling) if begins else None,
        "context_length": len(turn.prompt_ids),
        "observation": turn.observation_text,
        "observed": _spelled(turn.observation_ids, spelling),
        "observed_length": len(turn.observation_ids),
        "calls": [{"success": c.success, "seconds": c.seconds} for c in turn.tool_calls],
        "generate_seconds": turn.generate_seconds,
        "tool_seconds": turn.tool_seconds,
        "reward": turn.reward,
    }


def _tokens(
    turn: Turn, seen: Mapping[str, Any], spelling: Spelling | None
) -> dict[str, Any] | None:
    """``pieces`` are ``[text, how many tokens]``; the other lists have a number for each token."""
    completion = turn.completion
    if spelling is None or completion.counted is not None:
        return None
    if not spelling.knows(completion.token_ids):
        return None
    return {
        "pieces": [list(piece) for piece in spelling.pieces(completion.token_ids)],
        "logprobs": None if completion.logprobs is None else list(completion.logprobs),
        "versions": list(completion.token_versions()),
        **seen,
    }


def _spelled(ids: tuple[int, ...], spelling: Spelling | None) -> str | None:
    return spelling.text(ids) if spelling is not None and spelling.knows(ids) else None


def _plain(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
