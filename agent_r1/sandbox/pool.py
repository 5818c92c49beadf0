"""Tiers of zygotes and their slots, started when first needed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any, Final

from agent_r1.errors import SandboxError, SandboxUnavailable
from agent_r1.sandbox import isolation, layout
from agent_r1.sandbox.cgroups import Controllers, SlotGroup, TierGroup
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.languages import toolchain_paths
from agent_r1.sandbox.tiers import Tier

_START_SECONDS: Final = 60.0
_ID_BASE: Final = 1_900_000_000
"""Host user ids of programs when the executor runs as root: in a range nobody allots."""
_ID_COUNT: Final = 65536
_HUGE_PAGES: Final = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CREDENTIALS: Final = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What all tiers of an executor share."""

    file_bytes: int
    level: str
    controllers: Controllers | None


class Slot:
    """One init process that runs one program at a time."""

    __slots__ = ("channel", "group", "pid", "tier")

    def __init__(
        self, tier: ZygotePool, channel: socket.socket, pid: int, group: SlotGroup | None
    ) -> None:
        self.tier = tier
        self.channel = channel
        self.pid = pid
        """Of init, as this process sees it."""
        self.group = group

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the control group, if there is one, for the next run."""
        if self.group is not None:
            self.group.limit(memory_bytes, processes)

    def ran_out(self) -> bool:
        """Whether the kernel killed for memory in this slot since last asked."""
        return self.group is not None and self.group.ran_out()

    def close(self) -> None:
        """Hang up: init ends, and the kernel ends everything in its namespace."""
        self.channel.close()
        self.tier.bury(self)


class ZygotePool:
    """The supervisor, zygote and idle slots of one tier. Thread-safe."""

    def __init__(self, tier: Tier, settings: PoolSettings) -> None:
        self.tier = tier
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: list[Slot] = []
        self._buried: list[Slot] = []
        self._next = 0
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._group: TierGroup | None = None
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

    def bury(self, slot: Slot) -> None:
        """Remember the groups of an ended slot until its processes are gone."""
        if slot.group is not None:
            self._buried.append(slot)

    def _clear_graves(self) -> None:
        graves, self._buried = self._buried, []
        for slot in graves:
            assert slot.group is not None
            if not slot.group.close():
                self._buried.append(slot)

    def _spawn(self) -> Slot:
        with self._lock:
            self._clear_graves()
            try:
                return self._spawn_once()
            except (OSError, SandboxError):  # the zygote may have been killed: a new one, once
                self._stop()
            try:
                return self._spawn_once()
            except OSError as error:
                self._stop()
                raise SandboxUnavailable(f"no sandbox slot starts: {error}") from error

    def _spawn_once(self) -> Slot:
        if self._closed:
            raise SandboxUnavailable("the executor is closed")
        control = self._control or self._start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._next += 1
        index = self._next % (_ID_COUNT // 2 - 1)
        try:
            with theirs:
                socket.send_fds(control, [messages.pack_slot(index)], [theirs.fileno()])
            pid = _expect_hello(ours)
            group = self._group.add(index, pid) if self._group is not None else None
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        except BaseException:
            ours.close()
            raise
        return Slot(self, ours, pid, group)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._settings.controllers is not None:
            self._group = TierGroup(self._settings.controllers)
        spec = self._describe(theirs.fileno())
        bootstrap = layout.BOOTSTRAP.format(guest=layout.GUEST, module="supervisor")
        command = [sys.executable, "-I", "-S", "-c", bootstrap, json.dumps(spec)]
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        ours.settimeout(_START_SECONDS)
        try:
            data = ours.recv(65536)
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        if not data:
            raise SandboxUnavailable("the sandbox did not start: its supervisor ended at once")
        answer = json.loads(data)
        if "failed" in answer:
            raise SandboxUnavailable(isolation.refusal(self._settings.level, answer["failed"]))
        self._control = ours
        return ours

    def _describe(self, control: int) -> dict[str, Any]:
        environment = layout.environment()
        if self.tier.huge_pages:
            environment |= _HUGE_PAGES
        extra = toolchain_paths() if self.tier.name == "tools" else ()
        ids = host_ids()
        strict = self._settings.level == "strict"
        scratch = None
        if not strict:
            closed = layout.closed_folder()
            if ids is not None and closed is not None:
                raise SandboxUnavailable(
                    f"isolation={self._settings.level!r} runs programs as other users, who may "
                    f"not enter {closed}: install the interpreter and this package elsewhere"
                )
            scratch = tempfile.mkdtemp(prefix="agent-r1-")
            os.chmod(scratch, 0o711)
        shown = layout.describe(extra)
        return {
            "own_namespaces": strict,
            **shown,
            "control": control,
            "host": os.getpid(),
            "ids": ids,
            "cgroups": self._group.folders if self._group else [],
            "bootstrap": layout.BOOTSTRAP,
            "executable": sys.executable,
            "environment": environment,
            "zygote": {
                "control": control,
                "paths": layout.library_paths(),
                "modules": list(self.tier.modules),
                "single_id": ids is None,
                "file_bytes": self._settings.file_bytes,
                "own_namespaces": strict,
                "first_id": ids[0] if ids is not None else None,
                "readable": shown["binds"] if self._settings.level == "landlock" else None,
                "scratch": scratch,
            },
        }

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        for slot in self._idle:
            slot.close()
        self._idle.clear()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process = None
        if self._group is not None:
            self._group.close()
            self._group = None

    def close(self) -> None:
        """End the tier with everything in it."""
        with self._lock:
            self._closed = True
            self._stop()


def host_ids() -> tuple[int, int] | None:
    """First and number of the host user ids for programs; ``None`` where only ours can be."""
    if os.geteuid() != 0:
        return None
    try:
        with open("/proc/self/uid_map") as file:
            extents = [[int(field) for field in line.split()] for line in file]
    except OSError:
        return None
    for first, _, count in extents:
        if first <= _ID_BASE and first + count >= _ID_BASE + _ID_COUNT:
            return _ID_BASE, _ID_COUNT
    first, _, count = max(extents, key=lambda extent: extent[2])
    share = min(count // 2, _ID_COUNT)  # inside a container: the upper half of its ids
    return (first + count - share, share) if share >= 1024 else None


def _expect_hello(channel: socket.socket) -> int:
    """Wait until the slot's init is ready; its process id in this process's namespace."""
    channel.settimeout(_START_SECONDS)
    data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    if data != messages.HELLO:
        raise SandboxError(data[1:].decode("utf-8", "replace") or "the slot ended at once")
    channel.settimeout(None)
    for _, kind, payload in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack(payload)[0])
    raise SandboxError("the kernel does not tell who speaks on a socket")
