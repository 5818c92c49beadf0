"""The common prefix of two sequences: tokens, or the characters of two texts."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(left: Sequence[object], right: Sequence[object], limit: int | None = None) -> int:
    """How many leading items agree, at most ``limit``."""
    length = min(len(left), len(right))
    if limit is not None:
        length = min(length, limit)
    if left[:length] == right[:length]:
        return length
    return next(i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
