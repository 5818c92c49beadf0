"""Where an index reads trajectories from: whole records by their place."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from zlib import crc32

from agent_r1.errors import DataError
from agent_r1.monitor.arrows import BATCH_ROWS, Message, messages, read_batch, record_of
from agent_r1.monitor.jsonl import decode
from agent_r1.monitor.records import trajectories_file


class Entry(NamedTuple):
    """One record, and where it stands. In ``line`` a list of ids may be its length."""

    place: int
    size: int
    check: int
    line: bytes
    next: int
    """Where the record after it stands, or will."""


class Source(Protocol):
    """A file of trajectories that grows at its end and is cut back by a resumed run."""

    def entries(self, start: int) -> Generator[Entry, None, None]:
        """The whole records from a place on, in order."""

    def left(self, place: int) -> int:
        """How many bytes stand there and after it."""

    def record(self, place: int, size: int, *, arrays: bool = False) -> dict[str, Any] | None:
        """The record there; None if the file has been cut back.

        ``arrays``: where the file has numbers as arrays, they stay that.
        """

    def check(self, place: int, size: int) -> int:
        """The check of what stands there now."""


class JsonlSource:
    """``trajectories.jsonl``. A place is a byte; a size counts the newline."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def left(self, place: int) -> int:
        return max(0, _size(self.path) - place)

    def entries(self, start: int) -> Generator[Entry, None, None]:
        if not self.left(start):
            return
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end = start + len(line)
                yield Entry(start, len(line), crc32(line), line[:-1], end)
                start = end

    def record(self, place: int, size: int, *, arrays: bool = False) -> dict[str, Any] | None:
        line = self._bytes(place, size)
        return decode(line, f"{self.path}, byte {place}") if line else None

    def check(self, place: int, size: int) -> int:
        return crc32(self._bytes(place, size))

    def _bytes(self, place: int, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                return file.read(size)
        except OSError:
            return b""


class ArrowSource:
    """``trajectories.arrows``. A size is that of a batch, a place as ``arrows.py`` has it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def left(self, place: int) -> int:
        return max(0, _size(self.path) - place // BATCH_ROWS)

    def entries(self, start: int) -> Generator[Entry, None, None]:
        offset, first = divmod(start, BATCH_ROWS)
        for message in messages(self.path, offset):
            data = message.bytes()
            if len(data) < message.end - message.start:
                return  # cut back at this moment
            check, records = crc32(data), read_batch(data, "record").column(0)
            place, last = message.start * BATCH_ROWS, len(records) - 1
            for row in range(first, len(records)):
                after = message.end * BATCH_ROWS if row == last else place + row + 1
                line = records[row].as_py()
                yield Entry(place + row, len(data), check, line, after)
            first = 0

    def record(self, place: int, size: int, *, arrays: bool = False) -> dict[str, Any] | None:
        start, row = divmod(place, BATCH_ROWS)
        data = Message(self.path, start, start + size).bytes()
        if len(data) != size:
            return None
        return record_of(read_batch(data), row, self.path, arrays=arrays)

    def check(self, place: int, size: int) -> int:
        start = place // BATCH_ROWS
        return crc32(Message(self.path, start, start + size).bytes())


def open_source(folder: Path) -> Source:
    """Where a folder keeps its trajectories.

    Raises:
        DataError: it has none.
    """
    path = trajectories_file(folder)
    if not path.is_file():
        raise DataError(
            f"{folder} holds no trajectories; give the folder that training or evaluation wrote"
        )
    return ArrowSource(path) if path.suffix == ".arrows" else JsonlSource(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
