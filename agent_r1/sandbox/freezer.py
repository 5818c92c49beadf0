"""Freezers of control groups: where a session's processes are held between two cells.

Either version will do. Version 2 needs no controller for it, only a group in which we may make
others, which an ordinary user can have; version 1 needs root. A slot gets such a group with its
first session, so that other programs pay nothing for it. Without one sessions are stopped by
signals (see :mod:`.guest.session`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_r1.sandbox import cgroups
from agent_r1.sandbox.guest import freezer, messages

_FILES: Final = {1: (freezer.STATE, freezer.STATE), 2: ("cgroup.freeze", "cgroup.events")}
"""By version: the switch and the state."""
_SESSION: Final = "session"
_END_SECONDS: Final = 0.5
_PAUSE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups with a freezer can be made."""

    version: int
    folder: Path


def find() -> Hierarchy | None:
    """The group of this process, if groups that can be frozen can be made in it."""
    own = dict(cgroups.own_groups())
    for version, kind, name in ((2, "cgroup2", ""), (1, "cgroup", "freezer")):
        for mounted, where, options in cgroups.mounts():
            if mounted != kind or name not in own or (name and name not in options):
                continue
            path = Path(where + own[name])
            found = Hierarchy(version, path if path.is_dir() else Path(where))
            if _usable(found):
                _sweep(found)
                return found
    return None


def _usable(hierarchy: Hierarchy) -> bool:
    probe = hierarchy.folder / cgroups.new_name()
    try:
        probe.mkdir()
        return all(os.access(probe / file, os.R_OK) for file in _FILES[hierarchy.version])
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir()


def _sweep(hierarchy: Hierarchy) -> None:
    """Remove groups of executors that were killed, with all that was to clear them away.

    What is in them ends, too, if they are of this process namespace: in another one the executor
    may be alive.
    """
    for group in cgroups.stale(hierarchy.folder):
        until = time.monotonic() + _END_SECONDS
        while not cgroups.remove(group) and _is_ours(group) and time.monotonic() < until:
            freezer.end_below(str(group))
            time.sleep(_PAUSE)


def _is_ours(group: Path) -> bool:
    return group.name.endswith(_namespace())


def _namespace() -> str:
    """What tells this process namespace from others, at the end of a group's name."""
    return f"-{os.stat('/proc/self/ns/pid').st_ino}"


class TierFreezer:
    """The folder of one tier, made when the first of its slots has a session."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.version = hierarchy.version
        self.folder = hierarchy.folder / (cgroups.new_name() + _namespace())

    def add(self, index: int, group: cgroups.SlotGroup | None) -> SlotFreezer:
        """A group for the session of a slot, below ``group`` where only there its limits hold.

        Raises :class:`OSError`: the kernel makes no more groups, or the tier has ended.
        """
        limited = group.unified if group is not None else None
        folder = self.folder / str(index) if limited is None else limited / _SESSION
        folder.mkdir(parents=limited is None, exist_ok=True)
        return SlotFreezer(self.version if limited is None else 2, folder)

    def close(self) -> bool:
        """The tier has ended: end what is left in it. Whether nothing is."""
        freezer.end_below(str(self.folder))
        return cgroups.remove(self.folder)


class SlotFreezer:
    """The group of one slot's session."""

    def __init__(self, version: int, folder: Path) -> None:
        self._version = version
        self._folder = folder

    def hand_over(self, channel: socket.socket) -> None:
        """Give init the files of the group.

        Raises :class:`OSError`: the group or the slot is gone.
        """
        files = [("cgroup.procs", os.O_WRONLY)]
        switch, state = _FILES[self._version]
        files += [(switch, os.O_WRONLY), (state, os.O_RDONLY)]
        sent: list[int] = []
        try:
            for name, mode in files:
                sent.append(os.open(self._folder / name, mode | os.O_CLOEXEC))
            socket.send_fds(channel, [messages.FREEZER + bytes([self._version])], sent)
        finally:
            for descriptor in sent:
                os.close(descriptor)

    def close(self) -> bool:
        """The slot has ended, by whatever hand: so does its session. Whether nothing is left."""
        freezer.end_below(str(self._folder))
        return cgroups.remove(self._folder)
