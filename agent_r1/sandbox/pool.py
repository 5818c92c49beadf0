"""Tiers of zygotes and their slots, started when first needed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from agent_r1.errors import SandboxError, SandboxUnavailable
from agent_r1.sandbox import layout
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.tiers import Tier

_START_SECONDS: Final = 60.0
_ID_BASE: Final = 1_900_000_000
"""Host user ids of programs when the executor runs as root: in a range nobody allots."""
_ID_COUNT: Final = 65536
_HUGE_PAGES: Final = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Slot:
    """One init process that runs one program at a time."""

    __slots__ = ("channel", "index", "tier")

    def __init__(self, tier: ZygotePool, index: int, channel: socket.socket) -> None:
        self.tier = tier
        self.index = index
        self.channel = channel

    def close(self) -> None:
        """Hang up: init ends, and the kernel ends everything in its namespace."""
        self.channel.close()


class ZygotePool:
    """The supervisor, zygote and idle slots of one tier. Thread-safe."""

    def __init__(self, tier: Tier, file_bytes: int) -> None:
        self.tier = tier
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._idle: list[Slot] = []
        self._next = 0
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def take_idle(self) -> Slot | None:
        """An idle slot, the most recently used one, if there is any. Never blocks."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def take(self) -> Slot:
        """An idle slot or a new one."""
        return self.take_idle() or self._spawn()

    def put(self, slot: Slot) -> None:
        """Give back a slot whose last run was reported."""
        with self._lock:
            if not self._closed:
                self._idle.append(slot)
                return
        slot.close()

    def _spawn(self) -> Slot:
        with self._lock:
            if self._closed:
                raise SandboxError("the executor is closed")
            for last in (False, True):
                control = self._control or self._start()
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._next += 1
                index = self._next % (_ID_COUNT // 2 - 1)
                try:
                    socket.send_fds(control, [messages.pack_slot(index)], [theirs.fileno()])
                    theirs.close()
                    _expect_hello(ours)
                    return Slot(self, index, ours)
                except (OSError, SandboxError) as error:
                    ours.close()
                    self._stop()
                    if last:
                        raise SandboxUnavailable(f"no sandbox slot starts: {error}") from error
            raise AssertionError

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spec = self._describe(theirs.fileno())
        bootstrap = layout.BOOTSTRAP.format(guest=layout.GUEST, module="supervisor")
        command = [sys.executable, "-I", "-S", "-c", bootstrap, json.dumps(spec)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"},
            pass_fds=[theirs.fileno()],
            cwd="/",
        )
        theirs.close()
        ours.settimeout(_START_SECONDS)
        try:
            data = ours.recv(65536)
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        answer = json.loads(data) if data else {"failed": "its supervisor died at once"}
        if "failed" in answer:
            raise SandboxUnavailable(f"the sandbox cannot be isolated: {answer['failed']}")
        self._control = ours
        return ours

    def _describe(self, control: int) -> dict[str, Any]:
        environment = layout.environment()
        if self.tier.huge_pages:
            environment |= _HUGE_PAGES
        root = os.geteuid() == 0
        return {
            **layout.describe(),
            "control": control,
            "host": os.getpid(),
            "ids": [_ID_BASE, _ID_COUNT] if root else None,
            "cgroups": [],
            "bootstrap": layout.BOOTSTRAP,
            "executable": sys.executable,
            "environment": environment,
            "zygote": {
                "control": control,
                "paths": layout.library_paths(),
                "modules": list(self.tier.modules),
                "single_id": not root,
                "file_bytes": self._file_bytes,
            },
        }

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None
        _close_all(self._idle)
        self._idle.clear()

    def close(self) -> None:
        """End the tier with everything in it."""
        with self._lock:
            self._closed = True
            self._stop()


def _close_all(slots: Sequence[Slot]) -> None:
    for slot in slots:
        slot.close()


def _expect_hello(channel: socket.socket) -> None:
    channel.settimeout(_START_SECONDS)
    data = channel.recv(4096)
    if data != messages.HELLO:
        raise SandboxError(data[1:].decode("utf-8", "replace") or "the slot ended at once")
    channel.settimeout(None)
