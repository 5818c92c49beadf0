"""Where an index reads trajectories from: whole records by their place."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32


class Entry(NamedTuple):
    """One record as its line of JSON without the newline, and where it stands."""

    place: int
    size: int
    check: int
    line: bytes


class Source(Protocol):
    """A file of trajectories that grows at its end and is cut back by a resumed run."""

    def end(self) -> int:
        """How far the file reaches, in places; 0 if it is not there."""

    def entries(self, start: int) -> Generator[Entry, None, None]:
        """The whole records from a place on, in order."""

    def line(self, place: int, size: int) -> bytes:
        """The record there as JSON; empty if the file ends before."""

    def check(self, place: int, size: int) -> int:
        """The check of what stands there now."""


class JsonlSource:
    """``trajectories.jsonl``. A place is a byte; a size counts the newline."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def entries(self, start: int) -> Generator[Entry, None, None]:
        if self.end() <= start:
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                yield Entry(start, len(line), crc32(line), line[:-1])
                start += len(line)

    def line(self, place: int, size: int) -> bytes:
        return self._bytes(place, size)[:-1]

    def check(self, place: int, size: int) -> int:
        return crc32(self._bytes(place, size))

    def _bytes(self, place: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                return file.read(size)
        except OSError:
            return b""
