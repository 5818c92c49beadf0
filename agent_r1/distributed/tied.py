"""Become a command that ends when the process that started it does.

``python -m agent_r1.distributed.tied PARENT COMMAND …``, or ``tied --group PARENT COMMAND …``,
which stays beside the command and ends all that it started, too: children of a vLLM server
outlive it otherwise, with the memory that they hold. What a process was told about signals
outlives ``exec``; Ray blocks SIGINT in what it starts, and a rank must hear it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def become(parent: int, command: Sequence[str]) -> None:
    """Replace this process by ``command``, killed by Linux as soon as ``parent`` is gone."""
    heard = {signal.SIGINT, signal.SIGTERM}
    for kind in heard:
        signal.signal(kind, signal.default_int_handler if kind is signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
    _end_with_parent(signal.SIGKILL)
    with suppress(PermissionError):  # Ray's workers have the lowest priority
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if os.getppid() == parent:
        os.execvp(command[0], list(command))


def guard(parent: int, command: Sequence[str]) -> None:
    """Run ``command`` and end as it does, and its process group with ``parent``.

    This process leads the group. Ended by SIGTERM, it ends the group as well.
    """
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return
    tie = (sys.executable, "-m", "agent_r1.distributed.tied", str(os.getpid()))
    exitcode = subprocess.Popen([*tie, *command]).wait()
    if exitcode < 0:
        with suppress(OSError):  # nothing can be said about SIGKILL
            signal.signal(-exitcode, signal.SIG_DFL)
        os.kill(os.getpid(), -exitcode)
    sys.exit(exitcode)


def _end_with_parent(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    if sys.argv[1] == "--group":
        guard(int(sys.argv[2]), sys.argv[3:])
    else:
        become(int(sys.argv[1]), sys.argv[2:])
