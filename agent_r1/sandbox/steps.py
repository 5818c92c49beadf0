"""Write a flow once, run it blocking or on an event loop.

A flow is a generator that yields steps; a step can be done ``now`` (blocking this thread)
or ``later`` (awaited). :func:`drive` and :func:`adrive` are the two ways to run a flow.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Step(Protocol):
    """Something to wait for."""

    def now(self) -> Any: ...

    async def later(self) -> Any: ...


Flow = Generator[Step, Any, T]


def drive(flow: Flow[T]) -> T:
    """Run ``flow`` in this thread."""
    try:
        step = next(flow)
        while True:
            try:
                value = step.now()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


async def adrive(flow: Flow[T]) -> T:
    """Run ``flow`` on the running event loop; cancelling it throws into the flow."""
    try:
        step = next(flow)
        while True:
            try:
                value = await step.later()
            except BaseException as error:
                step = flow.throw(error)
            else:
                step = flow.send(value)
    except StopIteration as end:
        result: T = end.value
        return result


class Call:
    """A blocking call; on an event loop it is made in a thread.

    When the flow is cancelled meanwhile, ``undo`` receives the value that nobody awaits.
    """

    __slots__ = ("_abandoned", "_function", "_lock", "_undo", "_value")

    def __init__(self, function: Callable[[], Any], undo: Callable[[Any], None]) -> None:
        self._function = function
        self._undo = undo
        self._lock = threading.Lock()
        self._abandoned = False
        self._value: Any = None

    def now(self) -> Any:
        return self._function()

    def _in_thread(self) -> None:
        value = self._function()
        with self._lock:
            if not self._abandoned:
                self._value = value
                return
        self._undo(value)

    async def later(self) -> Any:
        try:
            await asyncio.to_thread(self._in_thread)
        except asyncio.CancelledError:
            with self._lock:
                self._abandoned = True
                value, self._value = self._value, None
            if value is not None:
                self._undo(value)
            raise
        return self._value


class Gate:
    """Lets ``permits`` runs through at a time, first come first served, any kind of waiter.

    The gate is itself the step that waits for a permit.
    """

    def __init__(self, permits: int) -> None:
        self._lock = threading.Lock()
        self._free = permits
        self._waiting: deque[Callable[[], None]] = deque()

    def now(self) -> None:
        opened = threading.Lock()
        opened.acquire()
        if self._ask(opened.release):
            return
        opened.acquire()

    async def later(self) -> None:
        if self.try_enter():
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(self._hand_over, future)
            except RuntimeError:  # that loop is closed: its waiter is gone
                self.leave()

        if self._ask(wake):
            return
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave()
            raise

    def _hand_over(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self.leave()
        else:
            future.set_result(None)

    def try_enter(self) -> bool:
        """Take a permit if one is free."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return True
            return False

    def _ask(self, wake: Callable[[], None]) -> bool:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return True
            self._waiting.append(wake)
            return False

    def leave(self) -> None:
        """Give the permit to the longest waiting, or back."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            wake = self._waiting.popleft()
        wake()
