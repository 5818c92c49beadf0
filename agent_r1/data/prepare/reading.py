"""How a row's question and answer are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agent_r1.data.prepare.problems import Dropped, Problem, Reason
from agent_r1.data.sources import MISSING, column_paths, lookup
from agent_r1.data.sources_files import read_rows
from agent_r1.errors import DataError
from agent_r1.registry import nearest
from agent_r1.reward.answers import boxed

AnswerReader: TypeAlias = Callable[[str], str]
"""From the text of the answer column to the answer. Raises ``ValueError`` with the reason."""


def as_it_is(text: str) -> str:
    return text.strip()


def after_hashes(text: str) -> str:
    """GSM8K: what follows the last ``####``, without thousands commas."""
    _, mark, answer = text.rpartition("####")
    if not mark:
        raise ValueError("no #### in the answer")
    return re.sub(r"(?<=\d),(?=\d{3})", "", answer.strip())


_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$\\.,])")


def last_box(text: str) -> str:
    r"""MATH: the content of the last ``\boxed{...}``, or the sign after a bare ``\boxed``."""
    boxes = boxed(text) or _BARE_BOX.findall(text)
    if not boxes:
        raise ValueError("no \\boxed in the solution")
    if not boxes[-1]:
        raise ValueError("the last \\boxed of the solution is empty")
    return boxes[-1]


def by_its_marks(text: str) -> str:
    r"""After ``####`` if there is one, else in the last ``\boxed``, else the text itself."""
    if "####" in text:
        return after_hashes(text)
    return last_box(text) if boxed(text) else as_it_is(text)


READERS: dict[str, AnswerReader] = {
    "auto": by_its_marks,
    "text": as_it_is,
    "boxed": last_box,
    "hashes": after_hashes,
}
"""By the names that the command line uses."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a file keep things; dots descend into nested columns.

    ``extra`` are columns that are passed on under their own last name, where present.
    """

    question: str
    answer: str
    read: AnswerReader = as_it_is
    extra: tuple[str, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(lookup(row, path) is not MISSING for path in (self.question, self.answer))


def read_problems(
    path: Path,
    layouts: Sequence[Layout],
    unwrap: Callable[[str], str] = str.strip,
    repair: Callable[[str], str] = str.strip,
) -> Iterator[Problem | Dropped]:
    """The problems of a file by the first layout that its first row fits.

    ``unwrap`` takes instructions off a question, ``repair`` mends its text; what ``repair``
    changes is counted.

    Raises:
        DataError: the file cannot be read, or no layout fits.
    """
    layout: Layout | None = None
    for row in read_rows(path):
        if row.values is None:
            yield Dropped(Reason.UNREADABLE, path.name, (row.number,), row.error)
            continue
        if layout is None:
            layout = _choose(path, row.values, layouts)
        try:
            yield _problem(path.name, row.number, row.values, layout, unwrap, repair)
        except ValueError as error:
            question = str(lookup(row.values, layout.question))[:200]
            yield Dropped(Reason.UNREADABLE, path.name, (row.number,), str(error), question)


def _choose(path: Path, row: Mapping[str, Any], layouts: Sequence[Layout]) -> Layout:
    for layout in layouts:
        if layout.fits(row):
            return layout
    there = list(column_paths(row))
    wanted = " or ".join(f"{layout.question} + {layout.answer}" for layout in layouts)
    close = next((n for layout in layouts if (n := nearest(layout.question, there))), "")
    raise DataError(
        f"{path} has not the columns {wanted}{close}; its columns: {', '.join(there)}. "
        "'agent-r1 data convert --question COLUMN --answer COLUMN' reads any table"
    )


def _problem(
    file: str,
    number: int,
    values: Mapping[str, Any],
    layout: Layout,
    unwrap: Callable[[str], str],
    repair: Callable[[str], str],
) -> Problem:
    given = unwrap(_question(lookup(values, layout.question))).strip()
    question = repair(given)
    if not question:
        raise ValueError(f"an empty question in column {layout.question!r}")
    answer = layout.read(_answer_text(lookup(values, layout.answer), layout.answer))
    if not answer:
        raise ValueError(f"an empty answer in column {layout.answer!r}")
    found = {path.rpartition(".")[2]: lookup(values, path) for path in layout.extra}
    extra = {k: v for k, v in found.items() if v is not MISSING and v is not None}
    return Problem(file, number, question, answer, extra, question != given)


def _question(value: Any) -> str:
    """The question of a prompt: text, or the user's message of a chat of one turn."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(m, Mapping) for m in value):
        users = [m.get("content") for m in value if m.get("role") == "user"]
        others = [m for m in value if m.get("role") not in ("user", "system")]
        if len(users) == 1 and isinstance(users[0], str) and not others:
            return users[0]
        raise ValueError(f"a chat of {len(value)} messages is no single question")
    if value is MISSING or value is None:
        raise ValueError("no question")
    raise ValueError(f"the question is no text but {type(value).__name__}")


_NO_ANSWER = frozenset({"", "nan", "none", "null"})


def _answer_text(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{path}.{key}" for key in value)
        raise ValueError(f"the answer is a structure; name one of its columns: {inner}")
    if isinstance(value, list | tuple):
        raise ValueError(f"the answer in column {path!r} is a list, a single one is needed")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = "" if value is MISSING or value is None else str(value)
    if text.strip().casefold() in _NO_ANSWER:
        raise ValueError(f"no answer in column {path!r}")
    return text
