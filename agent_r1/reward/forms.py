r"""Ways of writing the same answer that a parser of mathematics does not know.

Each function reads one kind of writing and returns what it means, or ``None`` where the text
is not of that kind. A kind is read only where it has one meaning: a wrong answer that counts as
right teaches a model to write it again, a right one that counts as wrong costs a sample.
"""

from __future__ import annotations

import re
from fractions import Fraction

_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox)(?![a-zA-Z])\s*"
)

# --- symbols -----------------------------------------------------------------------------

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ",
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ",
    "\u03c0": r"\pi ", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u211d": r"\mathbb{R}", "\u2208": r"\in ", "\u00b0": r"^\circ ", "\u00b1": r"\pm ",
    "\u00b2": "^2", "\u00b3": "^3", "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
}  # fmt: skip
_NAMES = (
    (re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\(?:leq|leqslant|leqq)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:R|reals|Reals)(?![a-zA-Z])"), r"\\mathbb{R}"),
    (re.compile(r"\u221a\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
)
_EMPTY = re.compile(
    r"(?:there (?:is|are) )?no (?:real |integer )?solutions?(?: exists?)?|none|(?:the )?empty set",
    re.IGNORECASE,
)
_NOWHERE = re.compile(r"(?:does not exist|d\.?n\.?e\.?)", re.IGNORECASE)
_ALL = re.compile(r"all real numbers|all reals|every real number", re.IGNORECASE)


def with_one_name(text: str) -> str:
    """One name for each symbol that has several."""
    for symbol, name in _SYMBOLS.items():
        text = text.replace(symbol, name)
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    words = unwrapped(text).strip(" .$")
    if _EMPTY.fullmatch(words):
        return r"\emptyset"
    if _NOWHERE.fullmatch(words):
        return r"\text{does not exist}"
    return r"(-\infty,\infty)" if _ALL.fullmatch(words) else text


def unwrapped(text: str) -> str:
    r"""Text without ``\text{...}`` and its like, what is in them kept."""
    parts = _WORDS.split(text)
    if len(parts) == 1:
        return text
    out = parts[0]
    for part in parts[1:]:
        end = _closing(part)
        out += part if end is None else part[1:end] + part[end + 1 :]
    return out


_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|~|\\ ")


def _spaced(text: str) -> str:
    """Unwrapped, with plain spaces for those of LaTeX."""
    return _SPACES.sub(" ", unwrapped(text))


def _closing(text: str) -> int | None:
    """Where the brace closes that ``text`` begins with."""
    if not text.startswith("{"):
        return None
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return i
    return None


# --- numbers -----------------------------------------------------------------------------

_MIXED = re.compile(
    r"([+-]?)(\d{1,9})(?:\s+|\s*(?:\\[,;: ]|\\ |~)\s*|\s*(?=\\frac))"
    r"(?:\\frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}|(\d{1,9})\s*/\s*(\d{1,9}))"
)
_POWER_OF_TEN = re.compile(
    r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*"
    r"(?:\{\s*([+-]?\d{1,3})\s*\}|\(\s*([+-]?\d{1,3})\s*\)|([+-]?\d{1,3}))"
)
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\overline\s*\{(\d{1,50})\}|\\overline\s*(\d)|\\dot\s*\{?(\d)\}?"
    r"|\\bar\s*\{?(\d{1,50})\}?|\((\d{1,50})\))"
)


def special_number(text: str) -> Fraction | None:
    r"""A mixed number (``1\frac{1}{2}``), a power of ten, or a repeating decimal.

    A whole number before a *proper* fraction is a mixed number, as everywhere in school and in
    competitions; before an improper one it is not read.
    """
    text = text.strip()
    if match := _MIXED.fullmatch(text):
        sign, whole = match[1], int(match[2])
        above, below = int(match[3] or match[5]), int(match[4] or match[6])
        if not 0 < above < below:
            return None
        return (whole + Fraction(above, below)) * (-1 if sign == "-" else 1)
    if match := _POWER_OF_TEN.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3] or match[4])
    if match := _REPEATING.fullmatch(text):
        period = next(group for group in match.groups()[3:] if group)
        before, fixed = match[2] or "0", match[3]
        nines = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
        value = Fraction(f"{before}.{fixed or 0}") + nines
        return -value if match[1] == "-" else value
    return None


_PLAIN_SIDE = re.compile(r"\s*([+-]?\d+(?:\.\d+)?(?:/0*[1-9]\d*)?)\s*")


def is_false_equation(text: str) -> bool:
    """``5 = 6``: numbers that are said to be equal and are not. Whatever it proves is no answer."""
    values = {Fraction(side[1]) for side in map(_PLAIN_SIDE.fullmatch, text.split("=")) if side}
    return len(values) > 1


_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?(?:\\text\{)?\s*(\d{1,2})\s*\}?\}?")


def based(text: str) -> tuple[str, int | None]:
    """The digits of a number and the base that is written below it, if one is."""
    match = _BASE.fullmatch(text.strip())
    return (match[1].upper(), int(match[2])) if match else (text.strip().upper(), None)


_MODULUS = re.compile(
    r"\s*(?:\\pmod\s*\{?\s*(\d+)\s*\}?|\(?\s*\\?(?:mod|bmod)\s*\{?\s*(\d+)\s*\}?\s*\)?)\s*$"
)


def without_modulus(text: str) -> tuple[str, int | None]:
    r"""``7 \pmod{12}`` as 7 and 12."""
    match = _MODULUS.search(text)
    if match is None or not match[0].strip():
        return text, None
    return text[: match.start()], int(match[1] or match[2])


_DENIAL = re.compile(
    r"\b(?:not|never|isn't|wrong|incorrect|neither|except)\b"
    r"|\\(?:ne|neg|not|lnot|to|rightarrow|Rightarrow|implies|mapsto)(?![a-zA-Z])|[-=]>",
    re.IGNORECASE,
)


def denies(answer: str, reference: str) -> bool:
    r"""The answer denies, or passes from one thing to another; the reference does not.

    ``x \ne 1`` is a set and denies nothing.
    """
    return bool(
        _DENIAL.search(answer) and not _DENIAL.search(reference) and not as_intervals(answer)
    )


# --- choices -----------------------------------------------------------------------------

_CHOICE = re.compile(
    r"(?:(?:[Tt]he )?(?:correct )?(?:option|choice|answer)(?: is)?:?\s*)?"
    r"(?:\(\s*(?P<bracketed>[A-J])\s*\)|(?P<bare>[A-J])(?=\s*(?:[.):]|$)))"
    r"\s*[.):]?\s*(?P<rest>.*)",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\(\s*[A-J]\s*\)|\b(?:and|or)\b\s*\(?[A-J]\b|[,&/]\s*\(?[A-J]\b")


def choice(text: str) -> tuple[str, str] | None:
    """The letter of one choice and the text after it; ``None`` where two are named."""
    clean = _spaced(text).strip(" $")
    match = _CHOICE.fullmatch(clean)
    if match is None or _OTHER_CHOICE.search(match["rest"]):
        return None
    return match["bracketed"] or match["bare"], match["rest"].strip()


# --- inequalities ------------------------------------------------------------------------

_VARIABLE = r"[a-zA-Z](?:_\{?\w\}?)?"
_LESS, _MORE = (
    r"(?:<|\\lt(?![a-zA-Z])|\\le(?![a-zA-Z]))",
    r"(?:>|\\gt(?![a-zA-Z])|\\ge(?![a-zA-Z]))",
)
_BOUND = r"[^<>=;]+?"
_BETWEEN = re.compile(rf"({_BOUND})\s*({_LESS})\s*({_VARIABLE})\s*({_LESS})\s*({_BOUND})")
_BETWEEN_DOWN = re.compile(rf"({_BOUND})\s*({_MORE})\s*({_VARIABLE})\s*({_MORE})\s*({_BOUND})")
_BELOW = re.compile(
    rf"({_VARIABLE})\s*({_LESS})\s*({_BOUND})|({_BOUND})\s*({_MORE})\s*({_VARIABLE})"
)
_ABOVE = re.compile(
    rf"({_VARIABLE})\s*({_MORE})\s*({_BOUND})|({_BOUND})\s*({_LESS})\s*({_VARIABLE})"
)
_NOT = re.compile(rf"({_VARIABLE})\s*\\ne\s*({_BOUND})")
_OR = re.compile(r"\bor\b|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])|\\cup(?![a-zA-Z])|;")
_SET_OF = re.compile(
    rf"\\\{{\s*{_VARIABLE}\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?\s*)?(?::|\||\\mid|\\colon)\s*(.*)\\\}}",
    re.DOTALL,
)
_MEMBER = re.compile(rf"{_VARIABLE}\s*\\in\s*(.*)", re.DOTALL)


def as_intervals(text: str) -> str | None:
    r"""``[0,1)`` for ``0 \le x < 1``; unions for "or"; ``None`` if it is no inequality.

    One variable, alone between the bounds. Expects one name for each symbol.
    """
    text = _spaced(text).strip(" .$")
    if match := _SET_OF.fullmatch(text):
        text = match[1].strip()
    if match := _MEMBER.fullmatch(text):
        inner = match[1].strip()
        return inner if inner[:1] in "([" or inner.startswith("\\mathbb") else None
    variables = set(re.findall(rf"(?<![a-zA-Z\\]){_VARIABLE}(?![a-zA-Z])", text)) - {"e"}
    pieces = [_one_interval(piece.strip()) for piece in _OR.split(text)]
    if None in pieces or len(variables) != 1:
        return None
    return r"\cup".join(piece for piece in pieces if piece)


def _one_interval(text: str) -> str | None:
    def closed(sign: str, brackets: str) -> str:
        return brackets[sign.startswith("\\le") or sign.startswith("\\ge")]

    if match := _BETWEEN.fullmatch(text):
        return f"{closed(match[2], '([')}{match[1]},{match[5]}{closed(match[4], ')]')}"
    if match := _BETWEEN_DOWN.fullmatch(text):
        return f"{closed(match[4], '([')}{match[5]},{match[1]}{closed(match[2], ')]')}"
    if match := _BELOW.fullmatch(text):
        sign, bound = (match[2], match[3]) if match[1] else (match[5], match[4])
        return rf"(-\infty,{bound}{closed(sign, ')]')}"
    if match := _ABOVE.fullmatch(text):
        sign, bound = (match[2], match[3]) if match[1] else (match[5], match[4])
        return rf"{closed(sign, '([')}{bound},\infty)"
    if match := _NOT.fullmatch(text):
        return rf"(-\infty,{match[2]})\cup({match[2]},\infty)"
    return None


_INTERVAL = re.compile(
    r"\s*(?:[(\[].*,.*[)\]]|\\mathbb\s*\{?R\}?.*|\\emptyset)(?:\s*\\cup.*)?\s*", re.DOTALL
)


def is_interval(text: str) -> bool:
    r"""Looks like an interval, or a union of some."""
    return _INTERVAL.fullmatch(text) is not None and r"\begin" not in text


# --- units -------------------------------------------------------------------------------

_UNIT_NAMES = {
    name: unit
    for unit, names in {
        "m": "m meter metre", "cm": "cm centimeter centimetre", "mm": "mm millimeter millimetre",
        "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet",
        "mi": "mi mile", "yd": "yd yard", "kg": "kg kilogram", "g": "g gram",
        "lb": "lb pound", "oz": "oz ounce", "l": "l liter litre", "ml": "ml milliliter",
        "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day",
        "$": "$ dollar usd", "cent": "cent", "deg": "deg degree", "mph": "mph",
        "unit": "unit",
    }.items()
    for name in names.split()
}  # fmt: skip
_MEASURE = re.compile(
    r"(?P<number>[+-]?[\d.,/]+|[+-]?\\frac\{\d+\}\{\d+\})\s*"
    r"(?P<unit>(?:[A-Za-z]+\.?)(?:\s+[A-Za-z]+\.?){0,3})(?P<power>\s*\^\s*\{?[23]\}?)?"
)


def unit_of(text: str) -> str | None:
    """The unit after a number, singular and by its usual sign; ``None`` if there is none."""
    clean = _spaced(text).strip(" .")
    if clean.startswith(("$", r"\$")):
        return "$"
    match = _MEASURE.fullmatch(clean)
    if match is None:
        return None
    words = match["unit"].lower().replace(".", "").split()
    power = re.sub(r"[^23]", "", match["power"] or "")
    if words[0] in ("square", "sq", "cubic"):
        power, words = ("3" if words[0] == "cubic" else "2"), words[1:]
    singular = [w.removesuffix("s") if len(w) > 2 else w for w in words]
    return " ".join(_UNIT_NAMES.get(w, w) for w in singular) + power


def units_differ(answer: str, reference: str) -> bool:
    """Both name a unit, and not the same one. ``5 km`` is not ``5 m``."""
    left, right = unit_of(answer), unit_of(reference)
    return left is not None and right is not None and left != right
