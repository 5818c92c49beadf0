"""Threads beside the event loop: for a blocking call, and for a loop of its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")


async def to_daemon_thread(fn: Callable[..., T], *args: object) -> T:
    """Await ``fn(*args)`` run in a daemon thread of its own, with this context's variables.

    ``asyncio.to_thread`` is not used on purpose, for two reasons. Its pool holds
    ``cores + 4`` threads, so a handful of slow tools would hold up every other trajectory;
    and its threads are joined when the interpreter exits, so one tool that hangs would
    keep the program from ever ending. A thread costs about 0.1 ms to start, which is
    small against any tool. There are never more threads than trajectories in flight.

    Cancelling the wait abandons the thread: nothing in Python can end it. Its late result
    is dropped.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():  # the waiter was cancelled meanwhile
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = context.run(fn, *args)
        except StopIteration as stop:  # a future refuses to carry this one
            error = RuntimeError(f"{getattr(fn, '__qualname__', fn)} raised StopIteration")
            error.__cause__ = stop
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop was closed while the call went on
            return

    threading.Thread(target=work, name="agent-r1-step", daemon=True).start()
    return await done


class LoopThread:
    """An event loop in a daemon thread; coroutines are handed to it from anywhere."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin ``work``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``; an interrupt cancels it and is raised when it has ended."""
        task: asyncio.Task[T] | None = None

        async def known() -> T:
            nonlocal task
            task = asyncio.current_task()
            return await work

        future = self.submit(known())
        try:
            return future.result()
        except KeyboardInterrupt:
            if task is not None:
                self._loop.call_soon_threadsafe(task.cancel)
            wait([future])
            raise

    def close(self) -> None:
        """End the loop and its thread; what is still running in it is abandoned."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
