"""A file that grows at its end, whole piece by whole piece, and survives being killed."""

from __future__ import annotations

import os
from pathlib import Path


class AppendOnly:
    """Open for appending behind the first ``size`` bytes; what lies beyond them is cut off.

    Not for use by several processes at once.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = size
        os.ftruncate(self._fd, size)

    def write(self, data: bytes) -> None:
        """Add ``data``: all of it, or nothing and ``OSError``."""
        left = memoryview(data)
        at = self.size
        try:
            while left:
                written = os.pwrite(self._fd, left, at)
                at, left = at + written, left[written:]
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size = at

    def cut(self, size: int) -> None:
        """Keep the first ``size`` bytes."""
        self.size = size
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """Release the file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
