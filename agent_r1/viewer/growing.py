"""A file of lines that another process appends to, and sometimes cuts back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any


class GrowingJsonl:
    """The records of a ``.jsonl`` file, read once each.

    A writer appends, and a run that resumes cuts its file back and repeats the steps; a file
    that no longer has the last line that was read is read anew. Safe to use from threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._end = 0
        self._last = b""
        self._records: list[dict[str, Any]] = []

    def records(self) -> list[dict[str, Any]]:
        """All records so far; a missing file has none, and what is no object is passed over."""
        with self._lock:
            try:
                self._read()
            except OSError:
                self._forget()
            return list(self._records)

    def _read(self) -> None:
        with self._path.open("rb") as file:
            if self._end:
                file.seek(self._end - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._forget()
            file.seek(self._end)
            for line in _whole_lines(file.read()):
                self._end += len(line)
                self._last = line
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if isinstance(record, dict):
            self._records.append(record)

    def _forget(self) -> None:
        self._end, self._last, self._records = 0, b"", []


def _whole_lines(data: bytes) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line
