"""A logger that keeps everything where a test can look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent_r1.monitor.loggers import RunInfo
from agent_r1.types import Trajectory


class MemoryLogger:
    """Implements :class:`agent_r1.monitor.loggers.RunLogger` in memory.

    ``failure`` is raised by every call after ``start``, as a logging service that went
    down would.
    """

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.info: RunInfo | None = None
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.trajectories: list[tuple[int, tuple[Trajectory, ...]]] = []
        self.closed = False

    def start(self, info: RunInfo) -> None:
        self.info = info

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._fail()
        self.metrics.append((step, dict(metrics)))

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        self._fail()
        self.trajectories.append((step, tuple(trajectories)))

    def close(self) -> None:
        self.closed = True
        self._fail()

    def series(self, name: str) -> list[float]:
        """All values of one metric, in the order of logging."""
        return [metrics[name] for _, metrics in self.metrics if name in metrics]

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
