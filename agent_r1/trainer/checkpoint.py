"""Checkpoints that are whole or not there.

A checkpoint is a folder ``step-000020``. It is written under another name, forced to disk
and renamed, so whatever carries its final name is complete, and being killed at any moment
leaves the previous one as the latest. Nothing but the folder's name says which is latest.

One process writes ``state.pt`` with everything in it. Several ranks write their tensors to
``shards/`` (``torch.distributed.checkpoint``) while training goes on, and ``state.pt`` says
which of them belong where. Each kind can be continued by any number of processes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from agent_r1.errors import CheckpointError, ModelError
from agent_r1.models.dcp import filled

STATE_FILE = "state.pt"
SHARDS_FOLDER = "shards"
POLICY_FOLDER = "policy"

PASSING_FILE = "replaced-by-the-next"
"""Marks a checkpoint that was saved for the time passed: the next one replaces it."""

_NAME = re.compile(r"step-(\d{6,})")
_OLD = ".old-"
"""Prefix of a checkpoint that is being removed."""
_DRAFT = ".writing-"
"""Prefix of a checkpoint that is being written."""
_REFUSALS = (OSError, RuntimeError, CheckpointError)
"""What a disk that takes nothing more looks like; torch raises ``RuntimeError``."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a worker adds to a checkpoint.

    ``state`` belongs into the state file. ``written`` waits until files that the worker goes on
    to write are on the disk, and raises :class:`CheckpointError` where they will never be;
    ``None``: it writes none.
    """

    state: Any
    written: Callable[[], None] | None = None


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
        self._under_way: Thread | None = None
        self._failure: BaseException | None = None

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
        return self.finish(self.begin(step), state, export, passing=passing)

    def begin(self, step: int) -> Path:
        """An empty folder for the checkpoint of ``step``, once the one under way is whole.

        Raises what became of that one, and :class:`CheckpointError` when the disk refuses.
        """
        self.wait()
        draft = self.folder / f"{_DRAFT}step-{step:06d}"
        with self._explained(draft):
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(f"{_DRAFT}*"):  # of a process that was killed
                shutil.rmtree(rest, ignore_errors=True)
            draft.mkdir()
        return draft

    def finish(
        self,
        draft: Path,
        state: dict[str, Any],
        export: Callable[[Path], None],
        *,
        passing: bool = False,
    ) -> Path:
        """Write the rest of a draft, as :meth:`save` does."""
        with self._explained(draft):
            torch.save(state, draft / STATE_FILE)
            export(draft / POLICY_FOLDER)
            return self._complete(draft, passing=passing)

    def finish_later(
        self,
        draft: Path,
        state: dict[str, Any],
        written: Callable[[], None],
        export: Callable[[Path], None] | None,
        *,
        passing: bool = False,
    ) -> None:
        """Write ``state`` now, and the rest of the checkpoint in a thread of its own.

        The checkpoint counts once ``written`` has returned. ``export`` then receives it and
        may add the policy's folder. :meth:`check` and :meth:`wait` raise what goes wrong.
        """
        with self._explained(draft):
            torch.save(state, draft / STATE_FILE)

        def finish() -> None:
            try:
                with self._explained(draft):
                    written()
                    final = self._complete(draft, passing=passing)
                if export is not None:
                    export(final)
            except BaseException as error:
                self._failure = error

        self._saved_at = self._clock()
        self._under_way = Thread(target=finish, name="agent-r1-checkpoint", daemon=True)
        self._under_way.start()

    def wait(self) -> None:
        """Until nothing is under way. Raises what went wrong with it."""
        if self._under_way is not None:
            self._under_way.join()
            self._under_way = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def check(self) -> None:
        """Raise what went wrong with a checkpoint that is no longer under way."""
        if self._under_way is not None and not self._under_way.is_alive():
            self.wait()

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def latest(self) -> Path | None:
        found = self.list()
        return found[-1] if found else None

    def _complete(self, draft: Path, *, passing: bool) -> Path:
        """The draft is complete: give it its name, and remove what it makes superfluous."""
        final = self.folder / draft.name.removeprefix(_DRAFT)
        if passing:
            (draft / PASSING_FILE).touch()
        _sync_tree(draft)
        _replace_folder(draft, final)
        self._prune()
        self._saved_at = self._clock()
        return final

    @contextmanager
    def _explained(self, draft: Path) -> Iterator[None]:
        """Say what a refusal of the disk means; leave no draft behind after any error."""
        try:
            yield
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if not isinstance(error, _REFUSALS):
                raise
            previous = self.latest()
            kept = f"Checkpoint {previous.name} is untouched" if previous else "There is none yet"
            final = self.folder / draft.name.removeprefix(_DRAFT)
            raise CheckpointError(
                f"could not write checkpoint {final}: {error}. {kept}. "
                "Free some disk space and run the same command again to continue from there."
            ) from error

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


def load_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The state file of a checkpoint; executes nothing from it.

    What ranks keep in shards is only named there: :func:`whole_state` brings it. With
    ``mapped`` tensors are read from the file when they are used.
    """
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file makes the unpickler stumble anywhere
        raise _unreadable(path / STATE_FILE, error) from error
    assert isinstance(state, dict)
    return state


def whole_state(state: Any, path: Path) -> Any:
    """A part of the state of the checkpoint ``path`` with every tensor that is in its shards."""
    try:
        return filled(state, path / SHARDS_FOLDER)
    except ModelError as error:
        raise _unreadable(path / SHARDS_FOLDER, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"cannot read {path}: {error}. Choose another checkpoint with "
        "trainer.resume_mode=resume_path trainer.resume_from_path=FOLDER, or start anew with "
        "trainer.resume_mode=disable."
    )


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
