"""Rewards of question answering: exact match and F1, normalised as the field does.

The normalisation is SQuAD's (Rajpurkar et al., arXiv 1606.05250): lower case, without
punctuation, without the articles *a*, *an*, *the*, spaces collapsed. F1 is that of the bags
of words of answer and reference; where one of them is *yes*, *no* or *noanswer*, only
equality counts (HotpotQA, arXiv 1809.09600). Of several references the best counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

from agent_r1.reward.answers import final_answer
from agent_r1.reward.base import register_reward
from agent_r1.reward.builtin import references
from agent_r1.tool.text import between
from agent_r1.types import Reward, Trajectory

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TAG = re.compile(r"</?\w{1,32}>")
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})
MAX_ANSWER_WORDS = 400
"""Words of an answer that are compared: nobody's answer is longer, and no model gains by it."""


def normalise(text: str) -> str:
    """The text as it is compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, reference: str) -> float:
    """1.0 if both are the same after normalisation."""
    return float(normalise(answer) == normalise(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words that answer and reference have in common."""
    given, wanted = normalise(answer), normalise(reference)
    if given != wanted and _ALL_OR_NOTHING & {given, wanted}:
        return 0.0
    if not given or not wanted:
        return float(given == wanted)
    words, expected = given.split(), wanted.split()
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def _best(trajectory: Trajectory, measure: Callable[[str, str], float]) -> float:
    correct = references(trajectory)
    answer = final_answer(trajectory.final_text)
    if answer is None or len(answer.split()) > MAX_ANSWER_WORDS:
        return 0.0
    return max(measure(answer, reference) for reference in correct)


def _shaped(
    trajectory: Trajectory, value: float, retrieval: float, format_score: float
) -> tuple[float, dict[str, float]]:
    """What is added to a wrong answer's score, so that a cold model finds its way."""
    parts: dict[str, float] = {}
    if format_score:
        closed = between(trajectory.final_text, "<answer>", "</answer>")
        parts["format"] = float(len(closed) == 1 and bool(closed[0].strip()))
    if retrieval:
        shown = " ".join(turn.observation_text for turn in trajectory.turns)
        seen = normalise(_TAG.sub(" ", shown))
        found = any(
            normalise(r) and f" {normalise(r)} " in f" {seen} " for r in references(trajectory)
        )
        parts["retrieved"] = float(found)
    extra = format_score * parts.get("format", 0.0) + retrieval * parts.get("retrieved", 0.0)
    return (value if value > 0 else extra), parts


@register_reward("qa_em", inline=True)
def qa_em(
    trajectory: Trajectory, *, format_score: float = 0.0, retrieval_score: float = 0.0
) -> Reward:
    """1 if the answer equals a reference after normalisation.

    A wrong answer earns ``format_score`` if the last turn gives exactly one answer between
    ``<answer>`` tags, and ``retrieval_score`` if a reference stood in what the tools found.
    Keep their sum well below 1. Both are 0 unless configured.
    """
    right = _best(trajectory, exact)
    value, parts = _shaped(trajectory, right, retrieval_score, format_score)
    return Reward(value, {"accuracy": right, "em": right, "f1": _best(trajectory, f1), **parts})


@register_reward("qa_f1", inline=True)
def qa_f1(
    trajectory: Trajectory, *, format_score: float = 0.0, retrieval_score: float = 0.0
) -> Reward:
    """F1 of the answer's words against the best reference; options as of ``qa_em``."""
    value = _best(trajectory, f1)
    right = _best(trajectory, exact)
    shaped, parts = _shaped(trajectory, value, retrieval_score, format_score)
    return Reward(shaped, {"accuracy": right, "em": right, "f1": value, **parts})
