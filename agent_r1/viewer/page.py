"""One HTML file out of the trajectories of a run, complete in itself and without any network.

The page carries its data as JSON and puts it on the screen as text only: what a model or a
tool wrote is never read as markup.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from agent_r1.errors import DataError
from agent_r1.messages import in_words
from agent_r1.monitor.metrics import source_of
from agent_r1.monitor.records import StoredTrajectory, read_stored, trajectories_file
from agent_r1.types import Completion, Trajectory, Turn
from agent_r1.viewer.spelling import Spelling

_PLACE = "/*DATA*/"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which trajectories of a file to show, at most ``most``.

    Where something is asked for, the last of those that fit. Otherwise what tells how the run
    went: see :func:`_story`.
    """

    most: int = 200
    step: int | None = None
    split: str | None = None
    outcome: str | None = None
    wrong: bool = False
    """Only those with a reward of 0 or less, or without any."""

    @property
    def asks(self) -> bool:
        """Whether anything is asked for."""
        return self != Choice(self.most)

    def fits(self, stored: StoredTrajectory) -> bool:
        trajectory = stored.trajectory
        return (
            self.step in (None, stored.step)
            and self.split in (None, stored.split)
            and self.outcome in (None, trajectory.outcome.value)
            and not (self.wrong and trajectory.reward and trajectory.reward.value > 0)
        )


def write_page(source: Path, target: Path, choice: Choice, tokenizer: Any = None) -> int:
    """Write the page of ``source``, a run's or an evaluation's folder or its file.

    With the model's ``tokenizer`` each token is shown with its log-probability. Returns how
    many trajectories the page holds.

    Raises:
        DataError: there is no such file, it is damaged, or no trajectory fits ``choice``.
    """
    file = trajectories_file(source)
    groups: dict[_Group, list[float | None]] = defaultdict(list)
    chosen: deque[StoredTrajectory] = deque(maxlen=choice.most)
    for stored in read_stored(file):
        reward = stored.trajectory.reward
        groups[_group(stored)].append(None if reward is None else reward.value)
        if choice.asks and choice.fits(stored):
            chosen.append(stored)
    reasons: dict[_Group, str] = {}
    if not choice.asks:
        reasons = _story(groups, choice.most)
        chosen.extend(stored for stored in read_stored(file) if _group(stored) in reasons)
    if not chosen:
        raise DataError(f"no trajectory of {file} is what was asked for")
    spelling = None if tokenizer is None else Spelling(tokenizer)
    data = {
        "title": str(file.parent.resolve().name),
        "tokens": spelling is not None,
        "trajectories": [
            _shown(stored, groups[_group(stored)], spelling)
            | {"chosen": reasons.get(_group(stored))}
            for stored in reversed(chosen)
        ],
    }
    template = files("agent_r1.viewer").joinpath("page.html").read_text(encoding="utf-8")
    # In a script element only "</" and "<!--" could end or change how the text is read.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    target.write_text(template.replace(_PLACE, text), encoding="utf-8")
    return len(chosen)


_Group = tuple[str, int, str]
"""Name, step and split."""


def _group(stored: StoredTrajectory) -> _Group:
    return stored.trajectory.group_id, stored.step, stored.split


def _story(groups: Mapping[_Group, Sequence[float | None]], most: int) -> dict[_Group, str]:
    """Whole groups that tell how a run went, and why each of them was chosen.

    A quarter of ``most`` trajectories each: groups of the first and of the last step, and of the
    others those with the highest and the lowest mean reward, the later one where they are equal.
    Of training, where there is any. What is left goes to the last groups.
    """
    if not groups:
        return {}
    latest = list(groups)[::-1]
    split = "train" if any(own == "train" for _, _, own in groups) else latest[0][2]
    steps = sorted({step for _, step, own in groups if own == split})
    mean = {group: fmean(found) for group, values in groups.items() if (found := _known(values))}
    between = [g for g in mean if g[2] == split and steps[0] < _step(g) < steps[-1]]
    candidates: dict[str, list[_Group]] = {
        "first step": [g for g in groups if _step(g) == steps[0] and g[2] == split],
        "last step": [g for g in groups if _step(g) == steps[-1] and g[2] == split],
        "best group": sorted(between, key=lambda g: (-mean[g], -_step(g))),
        "worst group": sorted(between, key=lambda g: (mean[g], -_step(g))),
        "among the last": latest,
    }
    reasons: dict[_Group, str] = {}
    used = 0
    for number, (reason, candidates_of) in enumerate(candidates.items(), 1):
        for group in candidates_of:
            size = len(groups[group])
            if group not in reasons and used + size <= most * min(number, 4) // 4:
                reasons[group] = reason
                used += size
    return reasons or {latest[0]: "among the last"}


def _step(group: _Group) -> int:
    return group[1]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _shown(
    stored: StoredTrajectory, members: Sequence[float | None], spelling: Spelling | None
) -> dict[str, Any]:
    siblings = _known(members)
    trajectory = stored.trajectory
    reward, task = trajectory.reward, trajectory.task
    return {
        "id": trajectory.id,
        "step": stored.step,
        "split": stored.split,
        "outcome": trajectory.outcome.value,
        "error": trajectory.error,
        "seconds": round(trajectory.seconds, 3),
        "reward": None if reward is None else reward.value,
        "parts": {} if reward is None else dict(reward.parts),
        "group": [fmean(siblings), len(siblings)] if siblings else None,
        "source": source_of(trajectory),
        "answer": str(task.answer),
        "prompt": _messages(trajectory),
        "turns": [_turn(turn, spelling) for turn in trajectory.turns],
    }


def _messages(trajectory: Trajectory) -> list[list[str]]:
    prompt = trajectory.task.prompt
    if isinstance(prompt, str):
        return [["prompt", prompt]]
    return [[str(message["role"]), in_words(message)] for message in prompt]


def _turn(turn: Turn, spelling: Spelling | None) -> dict[str, Any]:
    completion = turn.completion
    return {
        "pieces": _pieces(turn, spelling),
        "length": completion.length,
        "finish": completion.finish.value,
        "stop": completion.stop,
        "version": _versions(completion),
        "observation": turn.observation_text,
        "calls": [[call.success, round(call.seconds, 4)] for call in turn.tool_calls],
        "seconds": [round(turn.generate_seconds, 3), round(turn.tool_seconds, 3)],
    }


def _versions(completion: Completion) -> str:
    """``7``, or ``7, 8 from token 31`` where the weights changed in the middle."""
    (_, first), *later = completion.versions
    return ", ".join([str(first), *(f"{version} from token {at}" for at, version in later)])


def _pieces(turn: Turn, spelling: Spelling | None) -> list[list[Any]]:
    """``[text, log-probability]`` per token; the tokens of one character make one piece."""
    completion = turn.completion
    logprobs = completion.logprobs
    if (
        spelling is None
        or logprobs is None
        or completion.counted is not None
        or not spelling.knows(completion.token_ids)
    ):
        return [[turn.text, None]]
    pieces: list[list[Any]] = []
    at = 0
    for text, count in spelling.pieces(completion.token_ids):
        pieces.append([text, round(sum(logprobs[at : at + count]), 3)])
        at += count
    return pieces
