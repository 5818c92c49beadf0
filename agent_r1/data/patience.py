"""Say what is being waited for when something takes long to come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

FIRST_WORD_S = 5.0
"""Seconds of silence; the next message comes after twice as many, and so on."""

_LOG = logging.getLogger(__name__)


def told(
    items: Iterable[T], what: str, remedy: str, *, after_s: float = FIRST_WORD_S
) -> Iterator[T]:
    """The items as they come; a warning while the last has not come yet after ``after_s``.

    The warning counts what has come. It is given by a thread of its own, since the next item
    may never come.
    """
    count = 0
    done = threading.Event()

    def tell() -> None:
        pause = after_s
        while not done.wait(pause):
            _LOG.warning("still reading %s: %d tasks so far. %s", what, count, remedy)
            pause *= 2

    threading.Thread(target=tell, name="agent-r1-patience", daemon=True).start()
    try:
        for item in items:
            count += 1
            yield item
    finally:
        done.set()
