"""Which requests run now, which wait, which are refused.

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


@dataclass(slots=True)
class Admission:
    """At most ``slots`` requests run and ``entries`` wait; all bodies together have ``bytes``.

    Belongs to one event loop. :meth:`enter` and :meth:`leave` come in pairs.
    """

    slots: int
    entries: int
    bytes: int
    running: int = 0
    held_bytes: int = 0
    """Bodies of requests that are being received, wait or run."""
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

    async def enter(self, patience: float) -> float:
        """Wait for a slot; the seconds waited. Raises :class:`Refused`."""
        if self.draining:
            raise Refused("draining", "the sandbox is shutting down; ask another one")
        if self.running < self.slots and not self._queue:
            self.running += 1
            return 0.0
        if self.waiting >= self.entries:
            raise Refused("full", f"the queue is full with {self.waiting} requests; ask later")
        started = time.perf_counter()
        await self._wait(patience)
        return time.perf_counter() - started

    def leave(self, seconds: float) -> None:
        """Give the slot to the next in line. ``seconds`` is what the run took."""
        self._seconds += 0.05 * (seconds - self._seconds)
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.granted.done():
                waiter.granted.set_result(None)
                return
        self.running -= 1

    def drain(self) -> None:
        """Refuse all who come and all who wait; let those who run finish."""
        self.draining = True
        while self._queue:
            waiter = self._queue.popleft()
            _refuse(waiter, "draining", "the sandbox is shutting down; ask another one")

    async def _wait(self, patience: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future())
        self._queue.append(waiter)
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
        elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
            self.leave(self._seconds)  # cancelled in the very moment in which its slot came


@dataclass(slots=True)
class Hold:
    """The bytes of one request's body, reserved before they are read."""

    admission: Admission
    size: int = 0

    def reserve(self, size: int) -> None:
        """As many bytes in all. Raises :class:`Refused`."""
        more = size - self.size
        if more <= 0:
            return
        admission = self.admission
        if admission.held_bytes + more > admission.bytes:
            held = admission.held_bytes
            raise Refused("full", f"requests of {held} bytes are held already; ask later")
        admission.held_bytes += more
        self.size = size

    def release(self) -> None:
        """The body is needed no more."""
        self.admission.held_bytes -= self.size
        self.size = 0


def _refuse(waiter: _Waiter, reason: str, message: str) -> None:
    if not waiter.granted.done():
        waiter.granted.set_exception(Refused(reason, message))
