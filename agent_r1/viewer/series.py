"""Curves: a metric of a run as points, thinned where there are more than a screen shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST_POINTS = 2000


def series(lines: Iterable[Mapping[str, float]], name: str) -> dict[str, list[float]]:
    """``steps`` and ``values`` of a metric where it is finite.

    More than :data:`MOST_POINTS` are averaged in neighbouring groups of equal size; the step
    of a group is that of its last point.
    """
    points = [(x["step"], x[name]) for x in lines if math.isfinite(x.get(name, math.nan))]
    size = -(-len(points) // MOST_POINTS)
    if size > 1:
        points = [_middle(points[i : i + size]) for i in range(0, len(points), size)]
    return {"steps": [step for step, _ in points], "values": [value for _, value in points]}


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return points[-1][0], math.fsum(value for _, value in points) / len(points)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on ``count`` tasks (Wilson, JASA 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
