"""A question with its answer, as read from a row; and rows that were left out, with why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a row is not in the output."""

    UNREADABLE = "unreadable"
    """No question or no answer could be read from it."""
    MANGLED = "mangled answer"
    """The answer is not the one that was once written down."""
    CONFLICT = "conflicting answers"
    """The same question is there with another answer; nobody knows which one is right."""
    DUPLICATE = "duplicate"
    """The same question with the same answer came before."""
    OVERLAP = "overlaps an evaluation set"
    """Training on it would make an evaluation worthless."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. ``row`` counts from 1: the line of a text file, the row of a table."""

    file: str
    row: int
    question: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    repaired: bool = False
    """The question's text had been damaged and was repaired."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows of one file that were left out for one reason."""

    reason: Reason
    file: str
    rows: tuple[int, ...]
    detail: str
    question: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "reason": str(self.reason),
            "file": self.file,
            "rows": list(self.rows),
            "detail": self.detail,
            "question": self.question,
        }
