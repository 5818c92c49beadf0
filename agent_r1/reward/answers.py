r"""Finding the answer in a model's text, and deciding whether it is the right one.

What counts as *the answer* of a text, in all rewards here:

1. Thinking is no answer: what stands before the last ``</think>`` or after a ``<think>``
   that never ends is ignored. Programs are none either: ``<code>`` blocks are ignored,
   unfinished ones too.
2. Of what is left, the **last** ``\boxed{...}`` with balanced braces counts. So a model may
   repeat the instructions, box steps, and correct itself. An empty box is no answer.
3. Without any box, the content of the last ``<answer>...</answer>``.
4. Otherwise there is no answer. A number somewhere in prose does not count.
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction

from agent_r1.reward.limits import TimeLimit, time_limit
from agent_r1.tool.text import between

MAX_ANSWER_LENGTH = 1000
"""Longer answers are compared as text only."""

_CODE = re.compile(r"<code>.*?(?:</code>|\Z)", re.DOTALL)


def prose(text: str) -> str:
    """The part of a text in which an answer may stand: no thinking, no programs."""
    text = text.rpartition("</think>")[2]
    text = text.partition("<think>")[0]
    return _CODE.sub(" ", text)


def final_answer(text: str) -> str | None:
    """The answer that a text gives, by the rules above; ``None`` if it gives none."""
    text = prose(text)
    boxes = boxed(text)
    if boxes:
        return boxes[-1] or None
    tagged = between(text, "<answer>", "</answer>")
    return (tagged[-1].strip() or None) if tagged else None


_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s{0,8}\{)|(?P<escaped>\\.)|[{}]", re.DOTALL)


def boxed(text: str) -> list[str]:
    r"""Contents of all complete ``\boxed{...}``, in order; of nested ones the outer."""
    opened: list[int | None] = []  # where a box's content begins; None for other braces
    spans: list[tuple[int, int]] = []
    for token in _BRACES.finditer(text):
        if token["escaped"]:
            continue
        if token[0] != "}":
            opened.append(token.end() if token["box"] else None)
        elif opened and (start := opened.pop()) is not None:
            while spans and spans[-1][0] > start:
                spans.pop()  # it was inside this one
            spans.append((start, token.start()))
    return [text[start:end].strip() for start, end in spans]


_WRAPPERS = (
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"),
)


def plain(answer: str) -> str:
    """An answer without mathematics delimiters, outer spaces and a closing full stop."""
    answer = answer.strip()
    if answer.endswith("$"):
        answer = answer.strip("$").strip()
    for wrapper in _WRAPPERS:
        if (match := wrapper.fullmatch(answer)) is not None:
            answer = match[1].strip()
    return answer.removesuffix(".").strip()


_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\s+")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"([+-]?)\\[dtc]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?(?:/[+-]?\d+)?")


def as_number(answer: str) -> Fraction | None:
    r"""The exact value of a plain number: ``-1,234.50``, ``3/4``, ``\frac{3}{4}``, ``1e-3``.

    A leading currency sign is dropped. ``50\%`` is not a plain number: whether it means
    50 or 0.5 depends on the question. Nor is anything longer than ``MAX_ANSWER_LENGTH``.
    """
    if len(answer) > MAX_ANSWER_LENGTH:
        return None
    text = _THOUSANDS.sub("", plain(answer).replace("\u2212", "-"))
    text = _SPACES.sub("", text).removeprefix("\\$").removeprefix("$")
    text = _FRACTION.sub(r"\1\2/\3", text)
    if _NUMBER.fullmatch(text) is None:
        return None
    above, _, below = text.partition("/")
    try:
        return Fraction(above) / (Fraction(below) if below else 1)
    except ZeroDivisionError:
        return None


def same_text(answer: str, reference: str) -> bool:
    """Equal but for delimiters, spaces and the case of letters outside of LaTeX commands."""
    left, right = (_SPACES.sub("", plain(text)) for text in (answer, reference))
    if left == right:
        return True
    return "\\" not in left + right and left.casefold() == right.casefold()


def numeric_equal(answer: str, reference: str, *, tolerance: float = 0.0) -> bool:
    """Equal as plain numbers, up to a relative tolerance (exact rational arithmetic)."""
    left, right = as_number(answer), as_number(reference)
    if left is None or right is None:
        return False
    return abs(left - right) <= Fraction(tolerance) * abs(right)


_RUNAWAY = re.compile(
    r"(?:\^|\*\*)\s*[{(]*\s*[+-]?\d{7,}"  # exponents of seven digits and more
    r"|(?:\^|\*\*)\s*\{[^{}]*(?:\^|\*\*|!)"  # towers of powers
    r"|\d{5,}\s*!|!\s*!|\)\s*!"  # large, double and nested factorials
)


_UNIT = re.compile(
    r"(?!(?:hundred|thousand|million|billion|trillion|dozen|score)s?\b)"
    r"[A-Za-z]{2,}(?: [A-Za-z]+){0,3}"
)


def without_unit(answer: str) -> str:
    """``18`` for ``18 dollars``; anything else, numerals such as ``2 million`` too, unchanged."""
    number, _, unit = plain(answer).partition(" ")
    return number if _UNIT.fullmatch(unit.strip()) else answer


def math_equal(answer: str, reference: str, *, seconds: float = 5.0) -> bool:
    r"""Whether two answers mean the same mathematical object.

    Text and plain numbers are compared first, which settles most cases in microseconds.
    The rest is parsed and compared by math-verify: LaTeX, fractions, roots, intervals,
    sets, tuples, equations, units, percentages (``50\%`` equals ``50`` and ``0.5``).

    Not equal, instead of an error or a long wait: text that cannot be parsed, that is
    longer than ``MAX_ANSWER_LENGTH``, whose evaluation would run away (towers of powers),
    or that is not decided within ``seconds`` of processor time (see :func:`time_limit` for
    what that bounds; the time a busy machine takes is not held against an answer).
    """
    if same_text(answer, reference) or numeric_equal(answer, reference):
        return True
    if max(len(answer), len(reference)) > MAX_ANSWER_LENGTH or _RUNAWAY.search(answer):
        return False
    if numeric_equal(without_unit(answer), without_unit(reference)):
        return True
    if as_number(answer) is not None and as_number(reference) is not None:
        return False
    load_verifier()
    try:
        with time_limit(seconds, cpu=True):
            return _verify(answer, reference)
    except TimeLimit:
        return False


@functools.cache
def load_verifier() -> None:
    """Import math-verify, which takes a second, and quieten its warning about time limits."""
    import math_verify  # noqa: F401

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _verify(answer: str, reference: str) -> bool:
    """Ask math-verify. Its own time limits are off: they work in main threads only."""
    from math_verify import parse, verify

    left, right = (
        parse(f"$\\boxed{{{plain(text)}}}$", parsing_timeout=None) for text in (answer, reference)
    )
    if not left or not right:
        return False
    return bool(verify(right, left, timeout_seconds=None))
