r"""GSM8K's calculator annotations as programs.

A solution line such as ``She sold 48/2 = <<48/2=24>>24 clips in May.`` becomes ::

    # She sold x1 clips in May.
    x1 = 48/2

and the next line's use of 24 becomes ``x1``, so that the program computes what the solver
did in the head. A number that the question states itself stays a number. The last value is
printed, and the answer follows the tool's output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from agent_r1.data.cold_start.play import Draft, Rejected
from agent_r1.data.sources_files import Row

SOURCE = "gsm8k"

_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+"
_ANNOTATION = re.compile(
    r"(?:(?<![A-Za-z])[\d.,()$€£%\s+\-*/\u00d7\u00f7xX]*=\s*)?"
    r"[$€£]?\s*"
    r"<<(?P<expression>[^=<>]*)=(?P<result>[^<>]*)>>"
    rf"\s*(?P<shown>{_NUMBER})?"
)
_LITERAL = re.compile(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?![\w.])")
_PERCENT = Decimal(100)
"""Written out in percentages, hence never taken for an earlier result."""
_ARITHMETIC = re.compile(r"[\d.+\-*/() ]+")


def drafts(rows: Iterable[Row]) -> Iterator[Draft | Rejected]:
    """A draft for every row whose annotations make a program."""
    for row in rows:
        yield _draft(row)


def _draft(row: Row) -> Draft | Rejected:
    values = row.values or {}
    question, solution = values.get("question"), values.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str):
        return Rejected(row.number, "no text in 'question' and 'answer'", row.error)
    steps, mark, answer = solution.rpartition("####")
    answer = answer.strip().replace(",", "")
    if not mark or _value(answer) is None:
        return Rejected(row.number, "no number after ####", solution[-40:])
    try:
        code = program(question, steps)
    except ValueError as error:
        return Rejected(row.number, str(error))
    turns = (f"<code>\n{code}\n</code>", f"The answer is \\boxed{{{answer}}}.")
    return Draft(row.number, question.strip(), answer, turns, SOURCE)


@dataclass(slots=True)
class _Known:
    """Values that have a name already, and those that the question states."""

    stated: frozenset[Decimal]
    names: dict[Decimal, str]

    def rewrite(self, expression: str) -> str:
        return _LITERAL.sub(lambda match: self._name(match[0]), expression)

    def _name(self, literal: str) -> str:
        value = _value(literal)
        if value is None or value in self.stated or value == _PERCENT:
            return literal
        return self.names.get(value, literal)


def program(question: str, steps: str) -> str:
    """The annotated solution as Python that prints its last value.

    Raises:
        ValueError: there is no annotation, or one that is no arithmetic.
    """
    known = _Known(frozenset(_values_in(question)), {})
    lines: list[str] = []
    count = 0
    for step in steps.strip().splitlines():
        assignments: list[str] = []
        comment, end = "", 0
        for match in _ANNOTATION.finditer(step):
            expression = match["expression"].replace(",", "").strip()
            if not _ARITHMETIC.fullmatch(expression):
                raise ValueError("an annotation is no arithmetic")
            comment += step[end : match.start()]
            end = match.end()
            if re.fullmatch(_NUMBER, expression):  # "5=5" computes nothing
                comment = _joined(comment, match["shown"] or expression)
                continue
            count += 1
            assignments.append(f"x{count} = {known.rewrite(_decimal(expression))}")
            comment = _joined(comment, f"x{count}")
            if (value := _value(match["result"])) is not None:
                known.names[value] = f"x{count}"
        if assignments:
            lines += [f"# {_tidy(comment + step[end:])}", *assignments]
    if not count:
        raise ValueError("there is no annotation")
    return "\n".join([*lines, f"print(x{count})"])


def _joined(before: str, word: str) -> str:
    return f"{before.rstrip()} {word}" if before.strip() else word


def _tidy(comment: str) -> str:
    return re.sub(r"\s+", " ", comment).strip()


def _decimal(expression: str) -> str:
    """Python reads 05 as an error and .5 as it should be."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", expression)


def _values_in(text: str) -> Iterator[Decimal]:
    for match in re.finditer(_NUMBER, text):
        if (value := _value(match[0])) is not None:
            yield value


def _value(text: str) -> Decimal | None:
    try:
        return Decimal(text.strip().lstrip("$").replace(",", ""))
    except InvalidOperation:
        return None
