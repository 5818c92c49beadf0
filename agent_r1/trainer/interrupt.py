"""Ctrl-C: the first one finishes the update and saves, the second one ends at once."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """A coroutine was cancelled because the user asked to stop."""


class StopRequest:
    """Whether the user asked the run to end (SIGINT or SIGTERM, as job schedulers send).

    While a coroutine runs under :meth:`run` or :meth:`guard`, the request cancels it at
    once: sampling can be repeated. At any other time it only sets ``requested``, so that an
    update of the weights is finished before the run saves itself and ends. A second signal
    raises ``KeyboardInterrupt`` wherever the program is.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.requested = False
        self._announce = announce
        self._cancel: Callable[[], None] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals here for the duration; a no-op outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {sig: signal.signal(sig, self._handle) for sig in _SIGNALS}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)

    def run(self, runner: asyncio.Runner, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to completion, or raise :class:`Interrupted` when the user asks to stop."""
        return runner.run(self.guard(coroutine))

    async def guard(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same on the running event loop."""
        if self.requested:
            coroutine.close()
            raise Interrupted
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(coroutine)

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        try:
            return await task
        except asyncio.CancelledError:
            if not self.requested:
                raise
            raise Interrupted from None
        finally:
            self._cancel = None
            task.cancel()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._announce("stopping: saving what is finished (once more to stop at once)")
        if self._cancel is not None:
            self._cancel()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
