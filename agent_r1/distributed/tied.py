"""Become a command that ends when the process that started it does.

``python -m agent_r1.distributed.tied PARENT COMMAND …``. What a process was told about signals
outlives ``exec``; Ray blocks SIGINT in what it starts, and a rank must hear it.
"""

from __future__ import annotations

import ctypes
import os
import signal
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
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(PermissionError):  # Ray's workers have the lowest priority
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    if os.getppid() == parent:
        os.execvp(command[0], list(command))


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
