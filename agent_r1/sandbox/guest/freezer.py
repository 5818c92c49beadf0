"""The control group that holds a session between its cells, as init and supervisor use it.

Signals stop processes that take part: whatever sends SIGCONT wakes them. A frozen group runs
nothing, whoever signals, and what its processes fork is in it from birth. The files of the group
are opened by the host, outside of every namespace; init gets their descriptors, and a program has
no way to them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

STATE = "freezer.state"
"""With version 1 both the switch and the state."""
_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.005
_FREEZE = b"FROZEN"
_THAW = b"THAWED"
_WORDS = {1: (_FREEZE, _THAW, _FREEZE), 2: (b"1", b"0", b"frozen 1")}
"""By version: what freezes, what thaws, and what the state says when all stand still."""


class Freezer:
    """One group: ``members`` to join by, ``switch`` to write to, ``state`` to read."""

    def __init__(self, version: int, members: int, switch: int, state: int) -> None:
        self._freeze, self._thaw, self._frozen = _WORDS[version]
        self._members = members
        self._switch = switch
        self._state = state

    def adopt(self, pid: int) -> bool:
        """Take in a process that has no children yet. False where the kernel refuses."""
        try:
            os.write(self._members, b"%d" % pid)
        except OSError:
            return False
        return True

    def freeze(self, deadline: float) -> bool:
        """Freeze the group and wait until nothing in it runs. False if that takes too long."""
        pause = _FIRST_PAUSE
        try:
            os.pwrite(self._switch, self._freeze, 0)
            while self._frozen not in os.pread(self._state, 256, 0):
                if time.monotonic() > deadline:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except OSError:  # the group is gone: somebody cleared it away
            return False
        return True

    def thaw(self) -> None:
        """Let all continue. With version 1 what is killed while frozen ends now and not before."""
        with contextlib.suppress(OSError):
            os.pwrite(self._switch, self._thaw, 0)


def end_below(folder: str) -> None:
    """Kill what is in these groups. As often as it is called: what forks may outrun it once.

    With version 1 they are thawed as well, because they would not end before. What is frozen has
    no child and no end of its own, so that no number of a process can mean another one by now.
    """
    for place, _, files in os.walk(folder):
        if "cgroup.procs" not in files:
            continue
        if STATE in files:
            _write(f"{place}/{STATE}", _FREEZE)
        if not _write(f"{place}/cgroup.kill", b"1"):
            _kill_members(f"{place}/cgroup.procs")
        if STATE in files:
            _write(f"{place}/{STATE}", _THAW)


def _write(path: str, word: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, word)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _kill_members(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        for pid in map(int, file.read().split()):
            if pid > 0:  # else it is of a process namespace that is not ours
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
