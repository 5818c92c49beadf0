"""Duplicates, contradictions, mangled answers and evaluation questions are taken out."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent_r1.data.prepare.problems import Dropped, Problem, Reason
from agent_r1.reward.answers import math_equal

_SAME_COMMAND = re.compile(r"\\[dt]frac")
_LAYOUT_COMMAND = re.compile(
    r"\\(?:left|right|big|bigg|displaystyle|mathrm|text|textbf|mbox|quad|qquad)(?![a-z])"
    r"|\\[,;:! ()\[\]]"
)
_DRESSING = re.compile(r"[\s$~{}.,;:?!'\"`\u2018\u2019\u201c\u201d\u3001\u3002]")


def normalised(question: str) -> str:
    r"""A question without what only changes its looks: spaces, case, punctuation, ``$``,
    braces, ``\left``.

    Operators stay. Keeping letters and digits only, as is often done, makes one question
    of ``x^8 - 98x^4`` and ``x^8 + 98x^4``, and then takes their answers for a contradiction.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    text = _LAYOUT_COMMAND.sub("", _SAME_COMMAND.sub(r"\\frac", text))
    return _DRESSING.sub("", text)


def fingerprint(question: str) -> bytes:
    """16 bytes that are equal for questions that are equal when :func:`normalised`."""
    return hashlib.blake2b(normalised(question).encode(), digest_size=16).digest()


def same_answer(left: str, right: str) -> bool:
    """Whether two answers to one question agree."""
    return left == right or math_equal(left, right)


_EXACT = 2**53
"""Above it, a floating-point number no longer holds every integer."""


def rounded_by_a_float(answer: str) -> bool:
    """Whether an integer is too long for a float and yet is one to the last bit.

    In a collection whose answers went through floating point this means that the last
    digits are not those of the answer; elsewhere it is true of every large power of two.
    """
    if re.fullmatch(r"[+-]?\d{16,400}", answer) is None or abs(int(answer)) <= _EXACT:
        return False
    try:
        return int(float(answer)) == int(answer)
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What is left, in the order of the files, and what is not."""

    rows: int
    """Rows read."""
    questions: int
    """Different questions among the readable rows."""
    conflicts: int
    """Questions that were dropped for having several answers."""
    kept: tuple[Problem, ...]
    dropped: tuple[Dropped, ...]
    overlaps: Mapping[str, int]
    """Questions found in each evaluation set; one may be in several."""

    @property
    def counts(self) -> dict[Reason, int]:
        """Rows dropped, by reason."""
        counts: Counter[Reason] = Counter()
        for item in self.dropped:
            counts[item.reason] += len(item.rows)
        return dict(counts)


def clean(
    items: Iterable[Problem | Dropped],
    *,
    mangled: Callable[[str], bool] | None = None,
    evaluation: Mapping[str, Iterable[str]] | None = None,
    keep_duplicates: bool = False,
) -> Cleaned:
    """Keep one row of each question that has one answer and is in no evaluation set.

    ``mangled`` says of an answer that it cannot be what was meant; such a row counts
    neither as a duplicate nor as a contradiction. ``evaluation`` maps the name of an
    evaluation set to its questions.
    """
    gathered = _Gathered()
    for item in items:
        gathered.add(item, mangled)
    forbidden = _holders(evaluation or {})
    kept: list[tuple[int, Problem]] = []
    dropped = gathered.dropped
    overlaps: Counter[str] = Counter()
    for key, question in gathered.questions.items():
        if question.conflicting:
            dropped += question.all_dropped()
        elif key in forbidden:
            dropped += question.repeats()
            detail = "in " + ", ".join(forbidden[key])
            first = question.answers[0].places[0]
            dropped.append(_dropped(Reason.OVERLAP, [first], detail, question.text))
            overlaps.update(forbidden[key])
        elif keep_duplicates:
            kept += question.answers[0].places
        else:
            kept.append(question.answers[0].places[0])
            dropped += question.repeats()
    return Cleaned(
        rows=gathered.rows,
        questions=len(set(gathered.keys.values())),
        conflicts=sum(question.conflicting for question in gathered.questions.values()),
        kept=tuple(problem for _, problem in sorted(kept, key=lambda place: place[0])),
        dropped=tuple(dropped),
        overlaps={name: overlaps[name] for name in evaluation or ()},
    )


def _holders(evaluation: Mapping[str, Iterable[str]]) -> dict[bytes, list[str]]:
    """The evaluation sets that hold each question."""
    holders: dict[bytes, list[str]] = {}
    for name, texts in evaluation.items():
        for key in {fingerprint(text) for text in texts}:
            holders.setdefault(key, []).append(name)
    return holders


@dataclass(slots=True)
class _Answer:
    """One answer to a question, and the rows that give it, each with its place in the order."""

    text: str
    places: list[tuple[int, Problem]] = field(default_factory=list)


@dataclass(slots=True)
class _Question:
    """All rows that ask the same thing."""

    text: str
    answers: list[_Answer] = field(default_factory=list)

    @property
    def conflicting(self) -> bool:
        return len(self.answers) > 1

    def add(self, place: int, problem: Problem) -> None:
        for answer in self.answers:
            if same_answer(answer.text, problem.answer):
                break
        else:
            self.answers.append(answer := _Answer(problem.answer))
        answer.places.append((place, problem))

    def repeats(self) -> Iterator[Dropped]:
        """Every row but the first."""
        places = self.answers[0].places
        first = places[0][1]
        for of_file in _by_file(places[1:]):
            detail = f"like {first.file}, row {first.row}"
            yield _dropped(Reason.DUPLICATE, of_file, detail, self.text)

    def all_dropped(self) -> Iterator[Dropped]:
        """Every row, with the answers that contradict each other."""
        detail = "answers: " + " | ".join(answer.text for answer in self.answers)
        for answer in self.answers:
            for of_file in _by_file(answer.places):
                yield _dropped(Reason.CONFLICT, of_file, detail, self.text)


@dataclass(slots=True)
class _Gathered:
    """The rows of all files by what they ask."""

    rows: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    questions: dict[bytes, _Question] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    """Of every text of a question: collections repeat theirs up to a hundred times."""

    def add(self, item: Problem | Dropped, mangled: Callable[[str], bool] | None) -> None:
        self.rows += 1
        if isinstance(item, Dropped):
            self.dropped.append(item)
            return
        key = self.keys.get(item.question)
        if key is None:
            key = self.keys[item.question] = fingerprint(item.question)
        if mangled is not None and mangled(item.answer):
            detail = f"the answer {item.answer} went through a floating-point number"
            place = (self.rows, item)
            self.dropped.append(_dropped(Reason.MANGLED, [place], detail, item.question))
            return
        self.questions.setdefault(key, _Question(item.question)).add(self.rows, item)


def _by_file(places: Iterable[tuple[int, Problem]]) -> list[list[tuple[int, Problem]]]:
    files: dict[str, list[tuple[int, Problem]]] = {}
    for place in places:
        files.setdefault(place[1].file, []).append(place)
    return list(files.values())


def _dropped(
    reason: Reason, places: list[tuple[int, Problem]], detail: str, question: str
) -> Dropped:
    rows = tuple(problem.row for _, problem in places)
    return Dropped(reason, places[0][1].file, rows, detail, question)
