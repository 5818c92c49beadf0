"""Which runs there are below the folders that were named."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

from agent_r1.errors import DataError
from agent_r1.monitor.records import ARROWS_FILE, TRAJECTORIES_FILE
from agent_r1.monitor.run import ARCHIVE_FOLDER, METRICS_FILE
from agent_r1.viewer.run_view import RunView

_DEPTH = 5
_SKIPPED = frozenset({ARCHIVE_FOLDER, "checkpoints", "wandb", "tensorboard", "node_modules"})
_RESCAN_SECONDS = 3.0
_MARKS = (METRICS_FILE, TRAJECTORIES_FILE, ARROWS_FILE)


class Catalog:
    """The runs and evaluations under some folders. New ones are found while it is open."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.parent if root.is_file() else root for root in roots]
        self._lock = Lock()
        self._views: dict[str, RunView] = {}
        self._scanned = float("-inf")

    def runs(self) -> list[RunView]:
        """Every run, in the order of the folders and of their names."""
        with self._lock:
            if time.monotonic() - self._scanned > _RESCAN_SECONDS:
                self._scan()
                self._scanned = time.monotonic()
            return list(self._views.values())

    def run(self, key: str) -> RunView:
        """The run of this key.

        Raises:
            DataError: there is none.
        """
        for view in self.runs():
            if view.key == key:
                return view
        raise DataError(f"there is no run {key!r} in the folders that were opened")

    def close(self) -> None:
        for view in self._views.values():
            view.close()

    def _scan(self) -> None:
        folders = list(dict.fromkeys(f for root in self._roots for f in run_folders(root)))
        labels = labels_of(folders)
        views = {}
        for folder in folders:
            key = key_of(folder)
            views[key] = self._views.pop(key) if key in self._views else RunView(key, folder)
            views[key].label = labels[folder]
        for gone in self._views.values():
            gone.close()
        self._views = views


def key_of(folder: Path) -> str:
    """The same for the same folder whenever it is opened, so that links keep."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:10]


def run_folders(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Folders below ``root``, or itself, that hold metrics or trajectories."""
    root = root.resolve()
    if any((root / name).is_file() for name in _MARKS):
        yield root
    if depth == 0:
        return
    try:
        entries = [entry for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in sorted(entry.name for entry in entries):
        if name not in _SKIPPED and not name.startswith("."):
            yield from run_folders(root / name, depth - 1)


def labels_of(folders: Sequence[Path]) -> dict[Path, str]:
    """What tells the folders apart: their paths without what all of them share."""
    if len(folders) == 1:
        parts = folders[0].parts[1:]
        return {folders[0]: "/".join(parts[-2:])}
    shared = os.path.commonpath(folders) if folders else ""
    return {
        folder: os.path.relpath(folder, shared) if str(folder) != shared else folder.name
        for folder in folders
    }
