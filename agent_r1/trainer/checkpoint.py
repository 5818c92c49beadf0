"""Checkpoints that are whole or not there.

A checkpoint is a folder ``step-000020``. It is written under another name, forced to disk
and renamed, so whatever carries its final name is complete, and being killed at any moment
leaves the previous one as the latest. Nothing but the folder's name says which is latest.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from agent_r1.errors import CheckpointError

STATE_FILE = "state.pt"
POLICY_FOLDER = "policy"

PASSING_FILE = "replaced-by-the-next"
"""Marks a checkpoint that was saved for the time passed: the next one replaces it."""

_NAME = re.compile(r"step-(\d{6,})")
_OLD = ".old-"
"""Prefix of a checkpoint that is being removed."""


class CheckpointStore:
    """The checkpoints of one run.

    ``keep`` is how many to keep (``None``: all); older ones go when a newer one is whole.
    ``every_minutes`` is the longest time between two checkpoints (``None``: any).
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int | None = None,
        every_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._keep = keep
        self._every_s = None if every_minutes is None else every_minutes * 60
        self._clock = clock
        self._saved_at = clock()

    @property
    def overdue(self) -> bool:
        """``every_minutes`` have passed since the last checkpoint, or since the beginning."""
        return self._every_s is not None and self._clock() - self._saved_at >= self._every_s

    def save(
        self,
        step: int,
        state: dict[str, Any],
        export: Callable[[Path], None],
        *,
        passing: bool = False,
    ) -> Path:
        """Write ``state`` (tensors and plain Python values) and what ``export`` adds.

        ``export`` receives the path of the policy's Hugging Face folder. A ``passing``
        checkpoint is removed as soon as there is a newer one. Raises
        :class:`CheckpointError` when the disk refuses; then nothing has changed.
        """
        final = self.folder / f"step-{step:06d}"
        draft = self.folder / f".writing-{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            torch.save(state, draft / STATE_FILE)
            export(draft / POLICY_FOLDER)
            if passing:
                (draft / PASSING_FILE).touch()
            _sync_tree(draft)
            _replace_folder(draft, final)
        except (OSError, RuntimeError, CheckpointError) as error:  # torch raises RuntimeError
            previous = self.latest()
            kept = f"Checkpoint {previous.name} is untouched" if previous else "There is none yet"
            raise CheckpointError(
                f"could not write checkpoint {final}: {error}. {kept}. "
                "Free some disk space and run the same command again to continue from there."
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._prune()
        self._saved_at = self._clock()
        return final

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def latest(self) -> Path | None:
        found = self.list()
        return found[-1] if found else None

    def _prune(self) -> None:
        """Remove older checkpoints, and what a kill left of such a removal."""
        found = self.list()
        passed = [path for path in found[:-1] if (path / PASSING_FILE).exists()]
        lasting = [path for path in found if path not in passed]
        for path in passed + (lasting[: -self._keep] if self._keep is not None else []):
            _move_aside(path)
        for rest in self.folder.glob(f"{_OLD}*"):
            shutil.rmtree(rest, ignore_errors=True)


def step_of(path: Path) -> int:
    """The training step a checkpoint folder was written after."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is not a checkpoint folder (expected a name step-000020)")
    return int(match.group(1))


def load_state(path: Path) -> dict[str, Any]:
    """The state written by :meth:`CheckpointStore.save`; executes nothing from the file."""
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler stumble anywhere
        raise CheckpointError(
            f"cannot read {path / STATE_FILE}: {error}. Choose another checkpoint with "
            "trainer.resume_mode=resume_path trainer.resume_from_path=FOLDER, or start anew with "
            "trainer.resume_mode=disable."
        ) from error
    assert isinstance(state, dict)
    return state


def _sync_tree(folder: Path) -> None:
    """Force files and directory entries to disk before the rename makes them count."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_aside(path: Path) -> None:
    """Take a folder out of the list in one step: removing it file by file could be killed."""
    old = path.with_name(f"{_OLD}{path.name}")
    shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):  # then it stays, whole
        path.rename(old)


def _replace_folder(draft: Path, final: Path) -> None:
    """Rename, moving an older folder of that name (a repeated step) out of the way first."""
    if final.exists():
        _move_aside(final)
    draft.rename(final)
    _sync(final.parent)
