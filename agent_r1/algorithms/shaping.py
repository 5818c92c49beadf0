"""What DAPO adds around the loss: soft overlong penalty and dynamic sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent_r1.errors import ConfigError


def overlong_penalty(
    length: int, *, max_length: int, buffer: int, penalty_factor: float = 1.0
) -> float:
    """Reward added for length, at most 0 (DAPO 2025, eq. 13).

    0 up to ``max_length - buffer``; from there linear down to ``-penalty_factor`` at
    ``max_length``; constant beyond. ``length`` counts the tokens the model wrote, not
    those of tools.
    """
    if not 0 < buffer <= max_length:
        raise ConfigError(f"overlong buffer must be in 1..{max_length}, not {buffer}")
    excess = length - (max_length - buffer)
    return -penalty_factor * min(max(excess / buffer, 0.0), 1.0)


def has_signal(metric: Sequence[float], tolerance: float = 1e-9) -> bool:
    """Dynamic-sampling predicate: do the siblings of a group differ (DAPO 2025, eq. 11)?

    ``metric`` is the *outcome* metric (accuracy, say) of the siblings that did not fail,
    before any shaping: penalties would make every group vary. Fewer than two siblings,
    or a number that is not finite, is no signal.
    """
    if not metric or not all(math.isfinite(value) for value in metric):
        return False
    return max(metric) - min(metric) > tolerance
