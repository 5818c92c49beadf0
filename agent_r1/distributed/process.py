"""One process of a run on some machine of a cluster: a Ray actor that starts and watches it.

The process is the same command that ``torchrun`` or a shell would start. It ends with its
actor, and the actor ends with the driver, with its node or when it is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

_GRACE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a process said since the last report, and how it ended (``None``: it has not)."""

    lines: list[str]
    exitcode: int | None


class Process:
    """The actor. Its methods run one after the other, in the main thread of a Ray worker."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    def place(self) -> tuple[str, int, list[str]]:
        """This machine's address, a port that is free there now, and the GPUs of this actor."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1]
        return host, port, [str(card) for card in ray.get_gpu_ids()]

    def where(self) -> tuple[str, str]:
        """This machine's address, and Ray's number of this node."""
        import ray

        return ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id()

    def start(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        folder: str,
        whole_group: bool = False,
    ) -> int:
        """Start ``command`` in ``folder``, with ``environ`` on top of the node's; its number.

        ``whole_group``: what it starts itself ends with this actor, too, however that ends.
        """
        tie = [sys.executable, "-m", "agent_r1.distributed.tied"]
        tie += ["--group"] if whole_group else []
        self._child = subprocess.Popen(
            [*tie, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
            cwd=folder,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._child,), daemon=True).start()
        return self._child.pid

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\r\n"))
        self._lines.put(None)

    def poll(self, patience_s: float) -> Report:
        """What is new: at once if there is anything, else after ``patience_s``."""
        lines: list[str] = []
        deadline = time.monotonic() + patience_s
        while True:
            left = 0.0 if lines else max(0.0, deadline - time.monotonic())
            try:
                line = self._lines.get(timeout=left) if left else self._lines.get_nowait()
            except Empty:
                return Report(lines, self._ended())
            if line is None:  # its output is closed, so that it is ending
                return Report(lines, self._wait(_GRACE_S))
            lines.append(line)

    def signal(self, number: int) -> None:
        """Send a signal to the process and to no other."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def end(self) -> None:
        """End the process and what it started, and wait for that."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._wait(_GRACE_S)

    def _ended(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def _wait(self, patience_s: float) -> int | None:
        assert self._child is not None
        with suppress(subprocess.TimeoutExpired):
            return self._child.wait(patience_s)
        return None
