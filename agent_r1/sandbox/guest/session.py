"""A persistent interpreter: its process's side and init's handle on it.

Between runs every process of a session is held, so that it uses no time that no run
accounts for: by the freezer of a control group, or by signals where there is none. A
session reports the end of its own cells; a program can therefore lie about its own exit
code, exactly as a one-shot program can by ``os._exit``.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import signal
import socket
import time
from typing import NoReturn

from agent_r1.sandbox.guest import linux, messages, processes, program
from agent_r1.sandbox.guest.freezer import Freezer

_HOLD_SECONDS = 3.0
"""How long the processes of a session may take to stand still; then the session is ended."""
_QUIET_LOOKS = 2
"""Looks in a row that must find all of them stopped: one that was still running at the first
may have woken another that had been looked at before."""


class Session:
    """Init's handle on a session's interpreter process, which ``freezer`` is to hold."""

    def __init__(self, order: messages.Order, started: mmap.mmap, freezer: Freezer | None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        started[0] = 0
        self.pid = linux.fork()
        if self.pid == 0:
            _live(theirs, order.memory_bytes, started)
        theirs.close()
        adopted = freezer is not None and freezer.adopt(self.pid)
        self._freezer = freezer if adopted else None
        self._resting: frozenset[int] = frozenset()
        """Stopped by the program itself, so not to be continued."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def hand_over(self, order: messages.Order, descriptors: list[int]) -> None:
        """Let every process of the session continue, with a new job."""
        if self._freezer is not None:
            self._freezer.thaw()
        else:
            processes.signal_each(signal.SIGCONT, but=self._resting)
        has_input = b"i" if order.flags & messages.STDIN else b"-"
        with contextlib.suppress(OSError):
            sent = descriptors[: 4 if order.flags & messages.STDIN else 3]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))]
            self._socket.sendmsg([has_input], rights)

    def outcome(self) -> tuple[int, bool] | None:
        """Exit code, and whether memory ran out; ``None`` when the interpreter is gone."""
        with contextlib.suppress(OSError):
            data = self._socket.recv(16)
            if len(data) == 2:
                return data[0], data[1] == 1
        return None

    def interrupt(self) -> None:
        """What Ctrl-C is to a terminal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)

    def hold(self) -> bool:
        """Have every process of the session stand still until the next job.

        False if some do not, or are woken again: the session must be ended.
        """
        deadline = time.monotonic() + _HOLD_SECONDS
        return self._freezer.freeze(deadline) if self._freezer else self._stop(deadline)

    def _stop(self, deadline: float) -> bool:
        """By signals. Processes that wake each other at the very moment are looked at again."""
        quiet = 0
        self._resting = processes.stopped()
        while quiet < _QUIET_LOOKS:
            if not quiet:
                processes.signal_all(signal.SIGSTOP)
            quiet = quiet + 1 if processes.all_stopped() else 0
            if time.monotonic() > deadline:
                return False
        return True

    def end(self) -> tuple[int, float]:
        """Kill every process of the session; status of the interpreter, CPU seconds of all."""
        self._socket.close()
        thaw = self._freezer.thaw if self._freezer is not None else None
        return processes.end_all(self.pid, thaw)


def _live(channel: socket.socket, memory_bytes: int, started: mmap.mmap) -> NoReturn:
    """The interpreter's process: run one job after the other in one namespace."""
    try:
        kept = channel.fileno()
        os.dup2(kept, 63, inheritable=False)
        channel.detach()
        os.closerange(3, 63)
        channel = socket.socket(fileno=63)
        notebook: program.Notebook | None = None
        while True:
            data, descriptors = messages.receive(channel)
            if not data:
                os._exit(0)
            job = program.read_job(descriptors[0])
            program.attach(descriptors, data == b"i")
            for descriptor in descriptors:
                os.close(descriptor)
            if notebook is None:
                program.confine(job, memory_bytes, started, cpu_limited=False)
                notebook = program.Notebook(job)
            channel.send(bytes([notebook.run(job), notebook.out_of_memory]))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(1)
