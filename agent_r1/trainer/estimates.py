"""Estimates over tasks from several samples each: means, pass@k, majority votes, intervals."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate that at least one of ``k`` samples is right, from ``n`` samples.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained
    on Code", equation 1). Needs ``k <= n``.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@k needs 1 <= k <= n and 0 <= correct <= n, not {k=} {n=} {correct=}"
        )
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer, ties to the one given first; ``None`` when there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer]) if counts else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks with its bootstrap confidence interval."""

    value: float
    low: float
    high: float
    tasks: int


def bootstrap(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Percentile bootstrap of the mean over tasks (Efron 1979).

    Tasks are resampled, not single samples: the samples of one task are not independent.
    """
    if not values:
        raise ValueError("cannot estimate from no values")
    draw = random.Random(seed)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(resamples))
    tail = (1 - confidence) / 2
    low = means[int(tail * (resamples - 1))]
    high = means[math.ceil((1 - tail) * (resamples - 1))]
    return Estimate(fmean(values), low, high, len(values))
