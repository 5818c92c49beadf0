"""Tiers of zygotes and their slots, started when first needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from agent_r1.errors import SandboxError, SandboxUnavailable
from agent_r1.sandbox import isolation, layout, scratch, userids
from agent_r1.sandbox.cgroups import Controllers, SlotGroup, TierGroup
from agent_r1.sandbox.freezer import Hierarchy, SlotFreezer, TierFreezer
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.languages import toolchain_paths
from agent_r1.sandbox.tiers import Tier

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0
_PAUSE: Final = 0.005
_ATTEMPTS: Final = 3
"""At a start: a zygote that died unseen, one that dies while it starts, a good one."""
_MOST_SLOTS: Final = 65536
_HUGE_PAGES: Final = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_CREDENTIALS: Final = struct.Struct("iII")


class Refused(SandboxUnavailable):
    """The kernel denies what the level of isolation needs: trying again is of no use."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What all tiers of an executor share."""

    file_bytes: int
    level: str
    controllers: Controllers | None
    freezer: Hierarchy | None = None


class Slot:
    """One init process that runs one program at a time."""

    __slots__ = ("channel", "control", "freezer", "group", "index", "tier")

    def __init__(
        self,
        tier: ZygotePool,
        index: int,
        channel: socket.socket,
        control: socket.socket,
        group: SlotGroup | None,
    ) -> None:
        self.tier = tier
        self.index = index
        """Which of the tier's user ids it has."""
        self.channel = channel
        self.control = control
        """To the zygote that it was forked from."""
        self.group = group
        self.freezer: SlotFreezer | None = None
        """Holds its session between cells."""

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Set the control group, if there is one, for the next run."""
        if self.group is not None:
            self.group.limit(memory_bytes, processes)

    def ran_out(self) -> bool:
        """Whether the kernel killed for memory in this slot since last asked."""
        return self.group is not None and self.group.ran_out()

    def is_sound(self) -> bool:
        """Whether nobody ended this slot or its zygote from outside. May block for a start."""
        return self.tier.has(self.control) and not hung_up(self.channel)

    def prepare_session(self, freezer: TierFreezer) -> None:
        """Have its session held by a control group; without one init does it by signals."""
        with contextlib.suppress(OSError):
            self.freezer = freezer.add(self.index, self.group)
            self.freezer.hand_over(self.channel)

    def is_cleared(self) -> bool:
        """Whether the groups of this ended slot are gone, as far as they are empty by now."""
        gone = [part.close() for part in (self.freezer, self.group) if part is not None]
        return all(gone)

    def close(self) -> None:
        """Hang up: init ends, and the kernel ends everything in its namespace."""
        self.channel.close()
        if self.freezer is not None:
            self.freezer.close()
        if self.group is not None:
            self.group.forget()
        self.tier.bury(self)


class ZygotePool:
    """The supervisor, zygote and idle slots of one tier. Thread-safe."""

    def __init__(self, tier: Tier, settings: PoolSettings) -> None:
        self.tier = tier
        self._settings = settings
        self._strict = settings.level == "strict"
        self._lock = threading.Lock()
        self._idle: list[Slot] = []
        self._buried: deque[Slot] = deque()
        self._old_groups: list[TierGroup | TierFreezer] = []
        self._used: set[int] = set()
        self._next = 0
        self._ids: userids.Ids | None = None
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._group: TierGroup | None = None
        self._freezer: TierFreezer | None = None
        self._scratch: scratch.Scratch | None = None
        """Without namespaces: the folder of its slots' files."""
        self._closed = False

    def take_idle(self) -> Slot | None:
        """An idle slot, the most recently used one, if there is any. Never blocks."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def take(self) -> Slot:
        """An idle slot or a new one."""
        return self.take_idle() or self._spawn()

    def take_for_session(self) -> Slot:
        """The same for a persistent interpreter, after whose end the slot must be closed."""
        slot = self.take()
        freezer = self._freezer
        if freezer is not None:
            slot.prepare_session(freezer)
        return slot

    def put(self, slot: Slot) -> None:
        """Give back a slot whose last run was reported."""
        with self._lock:
            if not self._closed:
                self._idle.append(slot)
                return
        slot.close()

    def bury(self, slot: Slot) -> None:
        """Remember an ended slot until its processes are gone."""
        self._buried.append(slot)

    def _clear_graves(self) -> None:
        for _ in range(len(self._buried)):  # others may bury meanwhile, without the lock
            slot = self._buried.popleft()
            if slot.is_cleared():
                self._used.discard(slot.index)
            else:
                self._buried.append(slot)
        self._old_groups = [group for group in self._old_groups if not group.close()]

    def prune(self) -> None:
        """Drop the idle slots that were killed, so that no run is tried on them."""
        with self._lock:
            zygote = self._control
            if zygote is None or hung_up(zygote):
                dead, self._idle = self._idle, []
            else:
                dead = [slot for slot in self._idle if hung_up(slot.channel)]
                self._idle = [slot for slot in self._idle if slot not in dead]
        for slot in dead:
            slot.close()

    def has(self, control: socket.socket) -> bool:
        """Whether the zygote behind ``control`` is this tier's and alive.

        A process that is killed hangs up before the kernel ends those in its namespace. That
        no slot is being started now (the lock) means that nobody else holds its end.
        """
        with self._lock:
            return control is self._control and not hung_up(control)

    def _spawn(self) -> Slot:
        """A new slot. What was killed on the way is started again."""
        with self._lock:
            self._clear_graves()
            for _ in range(_ATTEMPTS):
                try:
                    return self._spawn_once()
                except (OSError, SandboxError) as error:
                    failure = error
                if self._control is None or hung_up(self._control):
                    self._stop()
                if isinstance(failure, Refused):
                    break
        if isinstance(failure, SandboxError):
            raise failure
        raise SandboxUnavailable(f"no sandbox slot starts: {failure}") from failure

    def _spawn_once(self) -> Slot:
        if self._closed:
            raise SandboxUnavailable("the executor is closed")
        control = self._control or self._start()
        index = self._next_index()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            with theirs:
                socket.send_fds(control, [messages.pack_slot(index)], [theirs.fileno()])
            pids = [_expect_hello(ours) for _ in range(2 if self._strict else 1)]  # forker, init
            group = self._group.add(index, pids) if self._group is not None else None
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        except BaseException:
            ours.close()
            raise
        self._used.add(index)
        return Slot(self, index, ours, control, group)

    def _next_index(self) -> int:
        """Not that of a living slot, and none that was used a short while ago."""
        most = _MOST_SLOTS
        if self._ids is not None:  # with namespaces a slot has two, after one for the zygote
            most = self._ids.count // 2 - 2 if self._strict else self._ids.count - 1
        for _ in range(most):
            self._next = self._next % most + 1
            if self._next not in self._used:
                return self._next
        raise SandboxUnavailable(f"more than {most} sandbox slots: lower `workers` or sessions")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if self._ids is None:
            self._ids = userids.shared() if self._strict else userids.reserve()
        if self._settings.controllers is not None:
            self._group = TierGroup(self._settings.controllers)
        if self._settings.freezer is not None and self._keeps_files_from_programs():
            self._freezer = TierFreezer(self._settings.freezer)
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
            self._expect_ready(ours)
        except BaseException:
            ours.close()
            raise
        self._control = ours
        return ours

    def _expect_ready(self, control: socket.socket) -> None:
        try:
            data = control.recv(65536)
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox did not start: {error}") from error
        if not data:
            raise SandboxUnavailable("the sandbox did not start: its supervisor ended at once")
        answer = json.loads(data)
        if answer.get("lost"):
            raise SandboxUnavailable("the sandbox did not start: one of its processes was killed")
        if "failed" in answer:
            raise Refused(isolation.refusal(self._settings.level, answer["failed"]))

    def _keeps_files_from_programs(self) -> bool:
        """Whether no program can write to the files of our control groups."""
        return self._settings.level != "process" or self._ids is not None

    def _group_folders(self) -> list[str]:
        folders = list(self._group.folders) if self._group is not None else []
        return [*folders, str(self._freezer.folder)] if self._freezer is not None else folders

    def _describe(self, control: int) -> dict[str, Any]:
        environment = layout.environment()
        if self.tier.huge_pages:
            environment |= _HUGE_PAGES
        extra = toolchain_paths() if self.tier.name == "tools" else ()
        ids = self._ids
        strict, held = self._strict, self._freezer
        if not strict:
            closed = layout.closed_folder()
            if ids is not None and closed is not None:
                raise SandboxUnavailable(
                    f"isolation={self._settings.level!r} runs programs as other users, who may "
                    f"not enter {closed}: install the interpreter and this package elsewhere"
                )
            self._scratch = self._scratch or scratch.make()
        shown = layout.describe(extra)
        return {
            "own_namespaces": strict,
            **shown,
            "control": control,
            "host": os.getpid(),
            "ids": (ids.first, ids.count) if ids is not None else None,
            "cgroups": self._group_folders(),
            "freezer": str(held.folder) if held is not None and held.version == 1 else None,
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
                "first_id": ids.first if ids is not None else None,
                "readable": shown["binds"] if self._settings.level == "landlock" else None,
                "scratch": self._scratch.path if self._scratch is not None else None,
                "counted": self._group is not None,
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
        if self._scratch is not None:  # the supervisor removes it, unless it was killed
            self._scratch.remove()
            self._scratch = None
        if self._group is not None:
            self._old_groups.append(self._group)
            self._group = None
        if self._freezer is not None:
            self._old_groups.append(self._freezer)
            self._freezer = None
        self._clear_graves()

    def close(self) -> None:
        """End the tier with everything in it."""
        with self._lock:
            self._closed = True
            self._stop()
            self._wait_for_the_dying()
            if self._ids is not None:
                self._ids.release()

    def _wait_for_the_dying(self) -> None:
        """Where the supervisor was killed too, its clean-up is ours."""
        deadline = time.monotonic() + _END_SECONDS
        while self._old_groups and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            self._clear_graves()


def hung_up(channel: socket.socket) -> bool:
    """Whether an idle channel's other side has closed it, or says what only the failed say."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    return bool(poller.poll(0))


def _expect_hello(channel: socket.socket) -> int:
    """Wait until a process of the slot is ready; its id in this process's namespace."""
    channel.settimeout(_START_SECONDS)
    data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    if data != messages.HELLO:
        raise SandboxError(data[1:].decode("utf-8", "replace") or "the slot ended at once")
    channel.settimeout(None)
    for _, kind, payload in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack(payload)[0])
    raise SandboxError("the kernel does not tell who speaks on a socket")
