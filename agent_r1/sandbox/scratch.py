"""The folders of slots without namespaces, found again after both who would remove them died.

The trainer holds a lock on its folder for as long as it lives, however it ends; a folder that
nobody holds is what a killed trainer and its killed supervisor have left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_r1.sandbox.guest import trees

_PREFIX: Final = "agent-r1-sandbox-"
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder and the lock on it."""

    path: str
    lock: int

    def remove(self) -> None:
        """Remove the folder, should it be there still, and let go of it."""
        trees.remove(self.path)
        os.close(self.lock)


def make() -> Scratch:
    """A folder that other users may pass through; those of the dead are removed."""
    sweep()
    for _ in range(_ATTEMPTS):
        path = tempfile.mkdtemp(prefix=_PREFIX)
        with contextlib.suppress(OSError):  # somebody's sweep was faster than our lock
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if _locked(lock) and os.path.exists(path):
                os.chmod(path, 0o711)
                return Scratch(path, lock)
            os.close(lock)
    raise OSError(f"no folder can be made and kept in {tempfile.gettempdir()}")


def sweep() -> None:
    """Remove our own user's folders that nobody holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _locked(descriptor):
                    trees.remove(str(path))
            finally:
                os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
