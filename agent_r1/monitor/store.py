"""Where a run writes its trajectories: an Arrow stream, or JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from agent_r1.monitor.jsonl import JsonlFile
from agent_r1.monitor.records import ARROWS_FILE, TRAJECTORIES_FILE, Stored, encode_trajectory

if TYPE_CHECKING:
    from agent_r1.monitor.tokens import TokenFile


class TrajectoryFile(Protocol):
    """A file of trajectories, open for appending."""

    path: Path

    def append(self, records: Sequence[Stored]) -> None:
        """Write trajectories after the last one: all of them, or none and ``OSError``."""

    def rewind(self, step: int) -> None:
        """Drop everything after ``step``: what a resumed run is about to repeat."""

    def close(self) -> None:
        """Release the file. May be called twice."""


class TrajectoryLines:
    """``trajectories.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonlFile(path)

    def append(self, records: Sequence[Stored]) -> None:
        self._file.append(
            encode_trajectory(record.trajectory, step=record.step, split=record.split)
            for record in records
        )

    def rewind(self, step: int) -> None:
        self._file.rewind(step)

    def close(self) -> None:
        self._file.close()


def open_trajectories(folder: Path, form: Literal["arrow", "jsonl"]) -> TrajectoryFile:
    """The file of a run. One that has begun in the other form stays in that form.

    Raises:
        OSError: it cannot be written.
        DataError: it is there and damaged at its beginning.
    """
    arrows, lines = folder / ARROWS_FILE, folder / TRAJECTORIES_FILE
    begun = [file for file in (arrows, lines) if file.is_file() and file.stat().st_size]
    if begun[:1] == [lines] or (form == "jsonl" and not begun):
        arrows.unlink(missing_ok=True)
        return TrajectoryLines(lines)
    from agent_r1.monitor.arrows import ArrowFile  # pyarrow takes a while to import

    return ArrowFile(arrows)


def open_tokens(folder: Path) -> TokenFile:
    """The file of what updates saw. Raises as :func:`open_trajectories` does."""
    from agent_r1.monitor.tokens import TokenFile

    return TokenFile(folder)
