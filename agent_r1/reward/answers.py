r"""Finding the answer in a model's text, and deciding whether it is the right one.

What counts as *the answer* of a text, in all rewards here:

1. Thinking is no answer: what stands before the last ``</think>`` or after a ``<think>``
   that never ends is ignored. Programs are none either: ``<code>`` blocks are ignored,
   unfinished ones too.
2. Of what is left, the **last** ``\boxed{...}`` counts. So a model may repeat the
   instructions, box steps, and correct itself. An empty box is no answer, and neither is one
   that never closes: what came before it was about to be replaced.
3. Without any box, the content of the last ``<answer>...</answer>``, with the same rules.
4. Otherwise there is no answer. A number somewhere in prose does not count.
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction
from typing import Any

from agent_r1.reward import forms
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
    boxes, open_at = _boxes(text)
    if boxes or open_at >= 0:
        start, end = boxes[-1] if boxes else (-1, -1)
        return None if open_at > end else text[start:end].strip() or None
    tagged = between(text, "<answer>", "</answer>")
    if text.rfind("<answer>") > text.rfind("</answer>"):
        return None
    return (tagged[-1].strip() or None) if tagged else None


_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s{0,8}\{)|(?P<escaped>\\.)|[{}]", re.DOTALL)


def boxed(text: str) -> list[str]:
    r"""Contents of all complete ``\boxed{...}``, in order; of nested ones the outer."""
    return [text[start:end].strip() for start, end in _boxes(text)[0]]


def _boxes(text: str) -> tuple[list[tuple[int, int]], int]:
    """Where the contents of complete boxes are, and where the last one opens that is not."""
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
    return spans, max((start for start in opened if start is not None), default=-1)


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


_SPACE = r"(?:\\[,;:! ]|\\q?quad\b|~|\s)"
_SPACES = re.compile(rf"(?<!\d){_SPACE}+|{_SPACE}+(?!\d|{_SPACE})")
"""Spaces that separate nothing; one between two digits does (``1 1/2`` is not ``11/2``)."""
_GROUPS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"(?<!\d)([+-]?)\\[dtc]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?(?:/[+-]?\d+)?")


def as_number(answer: str) -> Fraction | None:
    r"""The exact value of a plain number: ``-1,234.50``, ``3/4``, ``\frac{3}{4}``, ``1e-3``.

    A leading currency sign is dropped. ``50\%`` is not a plain number: whether it means
    50 or 0.5 depends on the question. Nor is anything longer than ``MAX_ANSWER_LENGTH``.
    """
    if len(answer) > MAX_ANSWER_LENGTH:
        return None
    text = _THOUSANDS.sub("", plain(answer).replace("\u2212", "-"))
    text = _GROUPS.sub(lambda group: re.sub(r"\D", "", group[0]), text)
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

    Text and plain numbers are compared first, which settles most cases in microseconds; then
    the forms of :mod:`agent_r1.reward.forms` are read: synonyms of symbols, mixed numbers,
    powers of ten, repeating decimals, choices, inequalities, units. The rest is parsed and
    compared by math-verify: LaTeX, fractions, roots, intervals, sets, tuples, equations,
    percentages (``50\%`` equals ``50`` and ``0.5``).

    Not equal, instead of an error or a long wait: text that cannot be parsed, that is
    longer than ``MAX_ANSWER_LENGTH``, whose evaluation would run away (towers of powers),
    or that is not decided within ``seconds`` of processor time (see :func:`time_limit` for
    what that bounds; the time a busy machine takes is not held against an answer).
    """
    if same_text(answer, reference) or numeric_equal(answer, reference):
        return True
    if max(len(answer), len(reference)) > MAX_ANSWER_LENGTH or _RUNAWAY.search(answer):
        return False
    left, right = (forms.with_one_name(plain(text)) for text in (answer, reference))
    verdict = _by_form(left, right)
    if verdict is not None:
        return verdict
    load_verifier()
    try:
        with time_limit(seconds, cpu=True):
            return _verify(left, right)
    except TimeLimit:
        return False


def _by_form(answer: str, reference: str) -> bool | None:
    """The verdict where the way in which something is written decides; else ``None``."""
    if same_text(answer, reference):
        return True
    if forms.is_false_equation(answer) or forms.denies(answer, reference):
        return False
    if forms.units_differ(answer, reference):
        return False
    left, right = (_number(text) for text in (answer, reference))
    if left is not None and right is not None:
        return left == right
    if (verdict := _by_choice(answer, reference)) is not None:
        return verdict
    (digits, base), (wanted, wanted_base) = forms.based(answer), forms.based(reference)
    if base is not None or wanted_base is not None:
        return digits == wanted and base in (wanted_base, None) and wanted_base is not None
    (rest, modulus), (wanted_rest, wanted_modulus) = map(forms.without_modulus, (answer, reference))
    if modulus != wanted_modulus and None not in (modulus, wanted_modulus):
        return False
    if modulus or wanted_modulus:
        return math_equal(rest, wanted_rest)
    return None


def _number(text: str) -> Fraction | None:
    bare = without_unit(text)
    value = as_number(bare)
    return forms.special_number(bare) if value is None else value


def _by_choice(answer: str, reference: str) -> bool | None:
    """A reference that is a choice is met by its letter, or by the text that it names.

    A letter with a text of its own that contradicts the reference's is wrong.
    """
    wanted, given = forms.choice(reference), forms.choice(answer)
    if wanted is None:
        return None
    if given is None:
        return math_equal(answer, wanted[1]) if wanted[1] else None
    if given[0] != wanted[0]:
        return False
    return not (given[1] and wanted[1]) or math_equal(given[1], wanted[1])


@functools.cache
def load_verifier() -> None:
    """Import math-verify, which takes a second, and quieten its warning about time limits."""
    import math_verify  # noqa: F401

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)


_DIGITS = 12
"""Decimals to which math-verify compares a decimal with a number that is none."""


def _verify(answer: str, reference: str) -> bool:
    """Ask math-verify. Its own time limits are off: they work in main threads only."""
    from math_verify import parse, verify

    if forms.is_interval(reference) and (intervals := forms.as_intervals(answer)) is not None:
        answer = intervals
    left, right = (
        parse(f"$\\boxed{{{text}}}$", parsing_timeout=None) for text in (answer, reference)
    )
    if not left or not right:
        return False
    same = verify(right, left, timeout_seconds=None, float_rounding=_DIGITS)
    return bool(same) or _same_constant(left[0], right[0])


def _same_constant(left: Any, right: Any) -> bool:
    """Two closed forms without variables or decimals, equal to forty digits.

    The letters e and i are the constants here: with a variable of that name beside others the
    expressions are no constants, and are not compared.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) for side in (left, right)):
        return False
    constants = {"i": sympy.I, "e": sympy.E}
    left, right = (
        side.subs({s: constants[s.name] for s in side.free_symbols if s.name in constants})
        for side in (left, right)
    )
    if (left - right).free_symbols or left.has(sympy.Float) or right.has(sympy.Float):
        return False
    if left.has(sympy.oo, sympy.nan, sympy.zoo) or right.has(sympy.oo, sympy.nan, sympy.zoo):
        return False
    try:
        distance = sympy.Abs(sympy.N((left - right).doit(), 50))
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False  # sympy cannot evaluate it
    return bool(distance.is_Number and distance < sympy.Float("1e-40"))
