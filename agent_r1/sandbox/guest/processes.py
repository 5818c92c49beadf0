"""The processes of one slot, as its init sees them: all others, or its own descendants."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

PROC = "/proc"
"""Where every process of the slot is listed, also those that hide from others."""
_PAUSE = 0.001
_STOPPED = b"T"
_STILL = frozenset((_STOPPED, b"t", b"Z", b"X"))
"""Stopped, traced, or over."""
_WAITS = b"D"
"""In a wait of the kernel's that only what it waits for ends, such as that of ``vfork``: with the
stop to come, which its other threads have obeyed or which is pending, it does nothing more."""
_settings: dict[str, Any] = {"own_namespace": True, "user": None}


def prepare(*, own_namespace: bool, user: int | None) -> None:
    """Without a process namespace, ``user`` is the user id of this slot's programs alone."""
    _settings.update(own_namespace=own_namespace, user=user)


def look_from(folder: int) -> None:
    """List processes in this open folder, a ``/proc`` that hides none, from now on."""
    global PROC
    PROC = f"/proc/self/fd/{folder}"


def listing() -> list[int]:
    """Every process of the slot but init."""
    numbers = [int(name) for name in os.listdir(PROC) if name.isdigit()]
    if _settings["own_namespace"]:
        return [number for number in numbers if number != 1]
    children: dict[int, list[int]] = {}
    for number in numbers:
        with contextlib.suppress(OSError), open(f"{PROC}/{number}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(number)
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def signal_all(number: int) -> None:
    """Send a signal to every process of the slot but init."""
    if _settings["own_namespace"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        return
    if _settings["user"] is not None and number == signal.SIGKILL:
        _signal_user(_settings["user"], number)
    for process in listing():
        with contextlib.suppress(OSError):
            os.kill(process, number)


def signal_each(number: int, *, but: frozenset[int]) -> None:
    """Send a signal to every process of the slot but init and these."""
    if not but:
        signal_all(number)
        return
    for process in listing():
        if process not in but:
            with contextlib.suppress(OSError):
                os.kill(process, number)


def stopped() -> frozenset[int]:
    """Those of the slot that stand still because of a signal."""
    return frozenset(p for p in listing() if _state(f"{PROC}/{p}")[0] == _STOPPED)


def all_stopped() -> bool:
    """Whether every thread of the slot but init's is stopped, or about to be, or over.

    A process whose first thread has ended looks like one that is over; the others may run.
    """
    return all(_stands_still(f"{PROC}/{process}") for process in listing())


def _stands_still(process: str) -> bool:
    state, threads = _state(process)
    if state not in _STILL and state != _WAITS:
        return False
    states = {state}
    if threads > 1:
        with contextlib.suppress(OSError):
            tasks = os.listdir(f"{process}/task")
            states = {_state(f"{process}/task/{task}")[0] for task in tasks}
    rest = states - _STILL
    return not rest or (rest == {_WAITS} and (_STOPPED in states or _stop_is_pending(process)))


def _stop_is_pending(process: str) -> bool:
    with contextlib.suppress(OSError), open(f"{process}/status", "rb") as file:
        signals = next(line.split()[1] for line in file if line.startswith(b"ShdPnd"))
        return bool(int(signals, 16) & 1 << signal.SIGSTOP - 1)
    return True


def _state(place: str) -> tuple[bytes, int]:
    """The kernel's letter for a process or thread, and how many threads its process has.

    Before them is a name that the program chose, of any bytes.
    """
    with contextlib.suppress(OSError), open(f"{place}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        return fields[0], int(fields[17])
    return b"X", 0


def _signal_user(user: int, number: int) -> None:
    """All processes of a user at once: no fork bomb outruns that."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, number)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def end_all(child: int, thaw: Callable[[], None] | None = None) -> tuple[int, float]:
    """Kill and reap every process of the slot but init; status of ``child``, CPU of all.

    ``thaw`` lets what was killed in a freezer end.
    """
    status, cpu = 0, 0.0
    flags = 0 if _settings["own_namespace"] else os.WNOHANG
    while True:
        signal_all(signal.SIGKILL)
        if thaw is not None:
            thaw()
        try:
            pid, ended, usage = os.wait4(-1, flags)
        except ChildProcessError:
            return status, cpu
        if pid == 0:
            time.sleep(_PAUSE)
            continue
        cpu += usage.ru_utime + usage.ru_stime
        if pid == child:
            status = ended
