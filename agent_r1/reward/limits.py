"""A time limit that can interrupt pure Python code."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 1.0
"""The alarm goes off again after this long, in case something swallowed it."""


class TimeLimit(BaseException):
    """The limit passed. No ``Exception``, so that ``except Exception`` lets it through."""


@contextmanager
def time_limit(seconds: float, *, cpu: bool = False) -> Iterator[None]:
    """Raise :class:`TimeLimit` in the body after ``seconds``; nested limits both hold.

    With ``cpu`` the seconds are those that this process spends computing, so that a busy
    machine changes no verdict; otherwise they are those of the clock.

    Works by signals, hence only in the main thread of a process (elsewhere it does
    nothing) and only between Python instructions: one long operation in C, such as a
    power of enormous integers, is not interrupted. What must be bounded at any price runs
    in a process that can be killed (:class:`agent_r1.reward.grader.Grader`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    alarm = _Alarm(seconds, cpu)
    if not alarm.sooner_than_outer:
        yield
        return
    try:
        alarm.set()
        try:
            yield
        finally:
            alarm.over = True
    finally:  # of its own, because the alarm may still go off in the line above
        alarm.restore()


class _Alarm:
    """One timer of the process, borrowed from whoever used it before."""

    def __init__(self, seconds: float, cpu: bool) -> None:
        self.over = False
        self._seconds = seconds
        self._timer = signal.ITIMER_VIRTUAL if cpu else signal.ITIMER_REAL
        self._signal = signal.SIGVTALRM if cpu else signal.SIGALRM
        self._clock = time.process_time if cpu else time.monotonic
        self._started = self._clock()
        self._outer = signal.getitimer(self._timer)
        self._handler = signal.getsignal(self._signal)

    @property
    def sooner_than_outer(self) -> bool:
        return not 0 < self._outer[0] < self._seconds

    def set(self) -> None:
        signal.signal(self._signal, self._ring)
        signal.setitimer(self._timer, self._seconds, _AGAIN_S)

    def restore(self) -> None:
        self.over = True
        left, interval = self._outer
        if left:
            left = max(left - (self._clock() - self._started), 1e-6)
        signal.setitimer(self._timer, 0)
        signal.signal(self._signal, self._handler)
        signal.setitimer(self._timer, left, interval)

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        if not self.over:
            raise TimeLimit(f"not done within {self._seconds:g} s")
