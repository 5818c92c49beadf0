"""Who may run now, who waits, who is sent away.

A sandbox is asked for thousands of programs at once and runs a few. Between the two lies a
first-in-first-out queue that is bounded in entries and in bytes and in the time that an
entry may wait, so that overload is an answer ("later", "elsewhere") and never a hang.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field


class Refused(Exception):
    """The queue does not take the request, or gave it up. ``reason`` is for the metrics."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True, eq=False)
class _Waiter:
    granted: asyncio.Future[None]
    size: int


@dataclass(slots=True)
class Admission:
    """At most ``slots`` requests run; at most ``entries`` of ``bytes`` together wait.

    Belongs to one event loop. :meth:`enter` and :meth:`leave` come in pairs.
    """

    slots: int
    entries: int
    bytes: int
    running: int = 0
    waiting_bytes: int = 0
    draining: bool = False
    _queue: deque[_Waiter] = field(default_factory=deque)
    _seconds: float = 0.1
    """Moving average of a run, from which the advice to a refused client is made."""

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which the queue has probably moved on, between 1 and 30."""
        return min(30, max(1, round(self.waiting * self._seconds / self.slots)))

    async def enter(self, size: int, patience: float) -> float:
        """Wait for a slot; the seconds waited. Raises :class:`Refused`."""
        if self.draining:
            raise Refused("draining", "the sandbox is shutting down; ask another one")
        if self.running < self.slots and not self._queue:
            self.running += 1
            return 0.0
        if self.waiting >= self.entries or self.waiting_bytes + size > self.bytes:
            raise Refused("full", f"the queue is full with {self.waiting} requests; ask later")
        started = time.perf_counter()
        await self._wait(size, patience)
        return time.perf_counter() - started

    def leave(self, seconds: float) -> None:
        """Give the slot to the next in line. ``seconds`` is what the run took."""
        self._seconds += 0.05 * (seconds - self._seconds)
        while self._queue:
            waiter = self._queue.popleft()
            self.waiting_bytes -= waiter.size
            if not waiter.granted.done():
                waiter.granted.set_result(None)
                return
        self.running -= 1

    def drain(self) -> None:
        """Refuse all who come and all who wait; let those who run finish."""
        self.draining = True
        while self._queue:
            waiter = self._queue.popleft()
            self.waiting_bytes -= waiter.size
            _refuse(waiter, "draining", "the sandbox is shutting down; ask another one")

    async def _wait(self, size: int, patience: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), size)
        self._queue.append(waiter)
        self.waiting_bytes += size
        late = f"no slot became free within {patience:g} s; add sandboxes or lower the load"
        timer = loop.call_later(patience, _refuse, waiter, "late", late)
        try:
            await waiter.granted
        except BaseException:
            self._forget(waiter)
            raise
        finally:
            timer.cancel()

    def _forget(self, waiter: _Waiter) -> None:
        """A waiter that will not run: out of the queue, or its slot to the next."""
        if waiter in self._queue:
            self._queue.remove(waiter)
            self.waiting_bytes -= waiter.size
        elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
            self.leave(self._seconds)  # cancelled in the very moment in which its slot came


def _refuse(waiter: _Waiter, reason: str, message: str) -> None:
    if not waiter.granted.done():
        waiter.granted.set_exception(Refused(reason, message))
