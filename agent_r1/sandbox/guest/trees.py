"""Remove a folder with all that a program has put into it.

Trees may be deeper than a stack, longer than the longest path and closed to their owner, so
nothing here recurses or names a path of more than one part: what lies below is moved up.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import Final

_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: str) -> None:
    """Remove the folder ``path``. What cannot be removed stays, and raises nothing."""
    with contextlib.suppress(OSError):
        top = _open(path)
        try:
            while _remove_some(top):
                pass
        finally:
            os.close(top)
        os.rmdir(path)


def _remove_some(top: int) -> bool:
    """Take one layer off everything in ``top``; False when nothing more can be done."""
    progress = False
    for name in os.listdir(top):
        with contextlib.suppress(OSError):
            _remove_layer(top, name)
            progress = True
    return progress


def _remove_layer(top: int, name: str) -> None:
    """Remove a file; of a folder, its files and itself, while its folders move up to ``top``."""
    if _unlinked(name, top):
        return
    folder = _open(name, top)
    try:
        for entry in os.listdir(folder):
            if not _unlinked(entry, folder):
                os.close(_open(entry, folder))  # a folder that is closed cannot be moved either
                other = f"{name[:8]}-{secrets.token_hex(8)}"
                os.rename(entry, other, src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    """Remove ``name`` unless it is a folder; whether it was removed."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


def _open(name: str, folder: int | None = None) -> int:
    """A folder, to list and to change, whatever modes a program gave it."""
    handle = os.open(name, os.O_PATH | _FOLDER, dir_fd=folder)
    try:
        place = f"/proc/self/fd/{handle}"
        with contextlib.suppress(OSError):  # somebody else's
            os.chmod(place, 0o700)
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)
