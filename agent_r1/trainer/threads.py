"""Work of a coroutine that computes for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Like ``asyncio.to_thread``, in a thread that an impatient interpreter does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(set_it: Callable[[Any], None], value: Any) -> None:
        loop.call_soon_threadsafe(lambda: None if future.done() else set_it(value))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    Thread(target=copy_context().run, args=(run,), name="agent-r1-learner", daemon=True).start()
    return await future
