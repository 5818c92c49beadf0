"""The rewards that come with the project.

All of them look for the answer in the last turn's own text, by the rules of
:mod:`agent_r1.reward.answers`, and compare it with ``trajectory.task.answer``. A reference
may be a string, a number, or a list of acceptable ones; a string that contains ``####``
(GSM8K) or a box stands for what follows it or is in it.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent_r1.errors import ConfigError, RewardError
from agent_r1.reward.answers import (
    boxed,
    final_answer,
    load_verifier,
    math_equal,
    numeric_equal,
    prose,
    same_text,
)
from agent_r1.reward.base import (
    SIBLINGS,
    make_reward,
    normalise_reward,
    register_reward,
    wants_siblings,
)
from agent_r1.tool.text import between
from agent_r1.types import Reward, Trajectory

Equal = Callable[[str, str], bool]


def references(trajectory: Trajectory) -> list[str]:
    """The acceptable answers of the task.

    Raises:
        RewardError: the task has none, which is a fault of the data and not a score of 0.
    """
    given = trajectory.task.answer
    if isinstance(given, Mapping):
        raise RewardError(
            f"the reference answer of task {trajectory.task.id!r} is a structure with "
            f"{', '.join(map(str, given))}; point data.answer_key at one of them"
        )
    items: Iterable[Any] = given if isinstance(given, list | tuple) else [given]
    found = [_reference(item) for item in items if item is not None and str(item).strip()]
    if not found:
        raise RewardError(
            f"task {trajectory.task.id!r} has no reference answer; check data.answer_key"
        )
    return found


def _reference(item: Any) -> str:
    text = str(item)
    if "####" in text:
        return text.rpartition("####")[2].strip()
    boxes = boxed(text)
    return boxes[-1] if boxes else text.strip()


def _right(trajectory: Trajectory, equal: Equal) -> bool:
    correct = references(trajectory)
    answer = final_answer(trajectory.final_text)
    return answer is not None and any(equal(answer, reference) for reference in correct)


def _graded(right: bool, correct: float, wrong: float) -> Reward:
    return Reward(correct if right else wrong, {"accuracy": float(right)})


def _ungraded(*, correct: float = 1.0, wrong: float = 0.0, **_: Any) -> Reward:
    """A text that no grader could get through in time is not a right answer."""
    return Reward(wrong, {"accuracy": 0.0, "grading_timeout": 1.0})


@register_reward("exact_match", inline=True)
def exact_match(trajectory: Trajectory, *, correct: float = 1.0, wrong: float = 0.0) -> Reward:
    """The answer is the reference, letter by letter (spaces and case aside)."""
    return _graded(_right(trajectory, same_text), correct, wrong)


@register_reward("numeric", inline=True)
def numeric(
    trajectory: Trajectory, *, correct: float = 1.0, wrong: float = 0.0, tolerance: float = 0.0
) -> Reward:
    """The answer is a plain number equal to the reference, up to a relative tolerance."""

    def equal(answer: str, reference: str) -> bool:
        return numeric_equal(answer, reference, tolerance=tolerance)

    return _graded(_right(trajectory, equal), correct, wrong)


@register_reward("math", on_timeout=_ungraded, prepare=load_verifier)
def math(trajectory: Trajectory, *, correct: float = 1.0, wrong: float = 0.0) -> Reward:
    """The answer means the same mathematical object as the reference."""
    return _graded(_right(trajectory, math_equal), correct, wrong)


def _retool_ungraded(**_: Any) -> Reward:
    return _ungraded(wrong=-1.0)


@register_reward("retool", on_timeout=_retool_ungraded, prepare=load_verifier)
def retool(
    trajectory: Trajectory, *, tool_bonus: float = 0.0, wrong_ceiling: float = -0.6
) -> Reward:
    """ReTool's rule: +1 for the right final answer, -1 otherwise (arXiv 2504.11536, section 2.3).

    With ``tool_bonus`` a *wrong* trajectory gains that much per tool call, up to
    ``wrong_ceiling``, which keeps a model from giving up its tool before it has learned
    to profit from it. A right answer is never worth more for having called more.
    """
    right = _right(trajectory, math_equal)
    calls = len(trajectory.tool_calls)
    wrong = -1.0
    if tool_bonus:
        wrong = min(wrong_ceiling, wrong + tool_bonus * calls)
    return Reward(1.0 if right else wrong, {"accuracy": float(right)})


@register_reward("format", inline=True)
def answer_format(trajectory: Trajectory, *, tags: bool = True) -> Reward:
    r"""1 if the last turn ends in a well-formed answer, else 0.

    Well-formed: exactly one non-empty ``\boxed{...}`` in the prose of the last turn, with
    ``tags`` inside one pair of ``<answer>`` tags that nothing follows; no code block left
    open in any turn.
    """
    text = prose(trajectory.final_text)
    boxes = boxed(text)
    good = len(boxes) == 1 and bool(boxes[0])
    if tags:
        tagged = between(text, "<answer>", "</answer>")
        good &= len(tagged) == 1 and boxed(tagged[0]) == boxes
        good &= text.rstrip().endswith("</answer>")
    good &= not any(
        turn.text.rfind("<code>") > turn.text.rfind("</code>") for turn in trajectory.turns
    )
    return Reward(float(good), {"format": float(good)})


@register_reward("tool_use", inline=True)
def tool_use(
    trajectory: Trajectory,
    *,
    bonus: float = 0.1,
    penalty: float = 0.0,
    max_calls: int = 1,
    process: bool = False,
) -> Reward:
    """Shaping: ``bonus`` per successful call up to ``max_calls``, ``penalty`` per failed one.

    Meant to be added to an outcome reward (:func:`weighted_sum`), small enough not to
    outweigh it. With ``process`` the same amounts are given to the turns that made the
    calls (``algorithm.process_reward_coef`` weighs them) and the trajectory's value is 0.
    """
    left = max_calls
    per_turn: list[float] = []
    for turn in trajectory.turns:
        good = sum(call.success for call in turn.tool_calls)
        paid = min(good, left)
        left -= paid
        per_turn.append(bonus * paid - penalty * (len(turn.tool_calls) - good))
    if process:
        return Reward(0.0, {"tool_use": sum(per_turn)}, tuple(per_turn))
    return Reward(sum(per_turn), {"tool_use": sum(per_turn)})


@register_reward("weighted_sum", prepare=load_verifier)
def weighted_sum(trajectory: Trajectory, *, rewards: Mapping[str, Any]) -> Reward:
    """The weighted sum of other rewards.

    ``rewards`` maps a reward's name or path to its weight, or to a mapping of ``weight``
    (default 1) and the reward's own options::

        reward:
          name: weighted_sum
          kwargs: {rewards: {math: 1.0, format: 0.1, tool_use: {weight: 1, bonus: 0.05}}}

    Parts are gathered; the unweighted value of each ingredient is added under its name.
    Per-turn rewards are weighted and summed.
    """
    found = []
    for name, (weight, options) in ingredients(rewards).items():
        fn = make_reward(name, **options)
        alone = {SIBLINGS: (trajectory,)} if wants_siblings(fn) else {}
        raw = fn(trajectory, **alone)
        if inspect.iscoroutine(raw):  # here in a process of its own; see SumGrader
            raw = asyncio.run(raw)
        found.append((name, weight, normalise_reward(raw, name)))
    return summed(found)


def ingredients(rewards: Mapping[str, Any]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Weight and options of each reward of a sum.

    Raises:
        ConfigError: there are none, or a weight is no number.
    """
    if not rewards:
        raise ConfigError("weighted_sum needs 'rewards', for example {math: 1.0, format: 0.1}")
    found = {}
    for name, setting in rewards.items():
        options = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
        weight = options.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(
                f"weighted_sum: {weight!r} is no weight of {name}; write a number, or a mapping "
                "with weight and the options of that reward"
            )
        found[name] = (float(weight), options)
    return found


def summed(rewards: Iterable[tuple[str, float, Reward]]) -> Reward:
    """The sum of ``(name, weight, reward)``, parts and per-turn rewards included."""
    value = 0.0
    parts: dict[str, float] = {}
    per_turn: list[float] | None = None
    for name, weight, one in rewards:
        value += weight * one.value
        parts |= {**one.parts, _short(name): one.value}
        if one.per_turn is not None:
            weighted = [weight * x for x in one.per_turn]
            per_turn = [
                a + b for a, b in zip(per_turn or [0.0] * len(weighted), weighted, strict=True)
            ]
    return Reward(value, parts, tuple(per_turn) if per_turn is not None else None)


def check_ingredients(rewards: Mapping[str, Any] | None = None) -> None:
    """Look up every reward of a ``weighted_sum``, before there is anything to score.

    Raises:
        ConfigError, RegistryError: one does not exist or does not take its options.
    """
    for name, (_, options) in ingredients(rewards or {}).items():
        make_reward(name, **options)
        if name == "weighted_sum":
            check_ingredients(**options)


def _short(name: str) -> str:
    return re.split(r"[:.]", name)[-1]
