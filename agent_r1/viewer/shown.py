"""A stored trajectory as the page of one trajectory wants it. Plain data for JSON.

A trajectory may have millions of tokens: :func:`shown` tells what is the same however many there
are, and :func:`tokens_of` a stretch of the tokens of one turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from agent_r1.viewer.spelling import Spelling

Seen = Mapping[str, Any]
"""What the update saw of each token that the model wrote (:mod:`agent_r1.monitor.tokens`)."""
MOST_TOKENS = 100_000
"""Of one answer."""


def shown(record: Mapping[str, Any], seen: Seen | None, spelled: bool) -> dict[str, Any]:
    """All of a trajectory but its tokens; ``spelled``: whether these can be told apart."""
    reward, task = record["reward"], record["task"]
    return {
        "id": record["id"],
        "step": record["step"],
        "split": record["split"],
        "group": record["group_id"],
        "sibling": record["index"],
        "outcome": record["outcome"],
        "error": record["error"],
        "seconds": float(record["seconds"]),
        "state": _plain(record.get("state")),
        "reward": reward,
        "task": {
            "id": task["id"],
            "source": task["data_source"],
            "answer": _plain(task["answer"]),
            "extra": {str(name): _plain(value) for name, value in task["extra"].items()},
        },
        "prompt": messages_of(task["prompt"]),
        "opening": record.get("opening", ""),
        "turns": _turns(record["turns"]),
        "spelled": spelled,
        "measured": _measured(record["turns"], seen or {}),
    }


def messages_of(prompt: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages that a task began with, as ``role`` and ``text``."""
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


def _turns(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    context = 0
    for turn in turns:
        begins = turn["prompt_ids"] is not None
        context = len(turn["prompt_ids"]) if begins else context
        made.append(_turn(turn, begins, context))
        context += len(turn["token_ids"]) + len(turn["observation_ids"])
    return made


def _turn(turn: Mapping[str, Any], begins: bool, context: int) -> dict[str, Any]:
    return {
        "text": turn["text"],
        "length": len(turn["token_ids"]) if turn.get("counted") is None else turn["counted"],
        "finish": turn["finish"],
        "stop": turn["stop"],
        "versions": _versions(turn),
        "begins": begins,
        "context_length": context,
        "observation": turn["observation_text"],
        "observed_length": len(turn["observation_ids"]),
        "calls": [
            {"success": call["success"], "seconds": float(call["seconds"])}
            for call in turn["tool_calls"]
        ],
        "generate_seconds": float(turn["generate_seconds"]),
        "tool_seconds": float(turn["tool_seconds"]),
        "reward": turn.get("reward"),
    }


def _versions(turn: Mapping[str, Any]) -> list[list[int]]:
    """Runs of ``[first token, version]``; files of before have one version for all tokens."""
    if "versions" not in turn:
        return [[0, turn["policy_version"]]]
    return [[int(first), int(version)] for first, version in turn["versions"]]


def _measured(turns: Sequence[Mapping[str, Any]], seen: Seen) -> dict[str, float]:
    """What is known of single tokens: ``{name: greatest size}`` of the whole trajectory."""
    found = {"versions": float(max((v for t in turns for _, v in _versions(t)), default=0))}
    if any(turn["logprobs"] is not None for turn in turns):
        found["logprobs"] = 0.0
    for name, values in seen.items():
        known = np.abs(np.asarray(values, np.float32))
        known = known[np.isfinite(known)]
        found[name] = float(known.max()) if known.size else 0.0
    return found


def tokens_of(
    record: Mapping[str, Any], number: int, end: int, seen: Seen | None, spelling: Spelling
) -> dict[str, Any]:
    """The first ``end`` tokens of a turn, and as text the context and the answer around them.

    ``tokens`` is None where the ids are not of the vocabulary. Its ``pieces`` are ``[text, how
    many tokens]``; its other lists have a number for each token.
    """
    turns = record["turns"]
    turn = turns[number]
    before = sum(len(each["token_ids"]) for each in turns[:number])
    return {
        "context": None if turn["prompt_ids"] is None else _text(turn["prompt_ids"], spelling),
        "observed": _text(turn["observation_ids"], spelling),
        "tokens": _tokens(turn, before, min(end, MOST_TOKENS), seen or {}, spelling),
        "total": len(turn["token_ids"]),
    }


def _tokens(
    turn: Mapping[str, Any], before: int, end: int, seen: Seen, spelling: Spelling
) -> dict[str, Any] | None:
    ids = _listed(turn["token_ids"][:end])
    if turn.get("counted") is not None or not spelling.knows(ids):
        return None
    known: dict[str, Any] = {
        name: values[before : before + len(ids)] for name, values in seen.items()
    }
    if turn["logprobs"] is not None:
        known["logprobs"] = turn["logprobs"][:end]
    runs = [*_versions(turn), [len(ids), 0]]
    return {
        "pieces": [list(piece) for piece in spelling.pieces(ids)],
        "versions": [
            version
            for (first, version), (after, _) in pairwise(runs)
            for _ in range(first, min(after, len(ids)))
        ],
        **{name: [float(value) for value in values] for name, values in known.items()},
    }


def _text(ids: Iterable[int], spelling: Spelling) -> str | None:
    found = _listed(ids)
    return spelling.text(found) if spelling.knows(found) else None


def _listed(ids: Iterable[int]) -> list[int]:
    found: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    return found


def _plain(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
