"""Ends a process group when nobody holds the other end of standard input any more.

``python -I vllm_guard.py GROUP GRACE_S``, started beside a vLLM server by the trainer, which holds
a pipe to it. However the trainer ends, the pipe is closed then: the group gets SIGTERM, and after
``GRACE_S`` seconds SIGKILL. vLLM by itself does not end with the trainer: while it starts it puts
SIGTERM off, and its engine and workers outlive their server.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

_LOOK_S = 0.1


def guard(group: int, grace_s: float) -> None:
    """Returns when the trainer and the processes of the group have ended."""
    while os.read(0, 1):
        pass
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(_LOOK_S)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends after the trainer, never before
    guard(int(sys.argv[1]), float(sys.argv[2]))
