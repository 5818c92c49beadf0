"""What is made of files that change seldom, and is asked for often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """What ``make`` makes of files, made anew once one of them has changed. Safe from threads.

    The value is shared by all who ask: nobody may change it.
    """

    def __init__(self, make: Callable[[], T], *files: Path) -> None:
        self._make, self._files = make, files
        self._lock = Lock()
        self._made: tuple[str, T] | None = None

    def get(self) -> T:
        with self._lock:
            mark = mark_of(self._files)  # before they are read: what comes meanwhile is read next
            if self._made is None or self._made[0] != mark:
                self._made = mark, self._make()
            return self._made[1]


def mark_of(files: Iterable[Path]) -> str:
    """Sizes and times of files as text: another one whenever one of them was written."""
    stats = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            stats.append("-")
        else:
            stats.append(f"{found.st_size:x}.{found.st_mtime_ns:x}")
    return "/".join(stats)
