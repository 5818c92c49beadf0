"""The time of each phase of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from agent_r1.tracing import span


class Clock:
    """Adds up wall-clock seconds by phase; phases may repeat."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with span(phase):
                yield
        finally:
            passed = time.perf_counter() - started
            self._seconds[phase] = self._seconds.get(phase, 0.0) + passed

    def metrics(self) -> dict[str, float]:
        """``timing_s/<phase>`` for each phase and ``timing_s/step`` for everything so far."""
        total = time.perf_counter() - self._started
        return {f"timing_s/{name}": s for name, s in self._seconds.items()} | {
            "timing_s/step": total
        }
