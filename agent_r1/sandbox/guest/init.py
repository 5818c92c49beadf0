"""Process 1 of a slot: has one program run at a time, ends all that it left, reports.

Because this process is not the program, signals that a program sends itself do what they
do elsewhere, and how it ended is told by the kernel and not by the program. Init never
reads a job: the child does, so that no program finds another one's text in its memory.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import NoReturn

from agent_r1.sandbox.guest import forker, linux, messages, processes, program, seccomp
from agent_r1.sandbox.guest.freezer import Freezer
from agent_r1.sandbox.guest.memory import Meter
from agent_r1.sandbox.guest.session import Session

_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_MILLISECONDS = 1000
_KILL_MILLISECONDS = 5
_WATCH_SECONDS = 0.05
"""How often the memory of a tree is sampled, beginning with its second such interval."""
_COLLECT_SECONDS = 3
"""For reading the files that a job asks for; the host waits longer past the wall clock."""
_INTERRUPT_SECONDS = 0.5
"""How long a session has to answer an interrupt before it is killed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slot's programs live and as whom."""

    box: str
    """The private folder with ``work``, ``tmp`` and ``shm`` in it."""
    user: int | None
    """The user id of programs; ``None``: that of this process."""
    own_namespaces: bool
    readable: tuple[str, ...] | None
    """With rules in place of namespaces: all that is readable."""
    file_bytes: int
    counted: bool
    """A control group limits the memory of all processes together."""


def main(
    channel: socket.socket,
    keeper: socket.socket,
    orders: socket.socket | None,
    place: Place,
    started: mmap.mmap,
) -> NoReturn:
    """Serve the host on ``channel`` until it hangs up."""
    program.forget_score()
    if place.own_namespaces:
        _mount_proc()
    else:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    if place.own_namespaces:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)  # keeps its /proc entries from the program
    own = place.own_namespaces
    linux.install_seccomp(seccomp.build_filter(own_network=own, own_processes=own))
    slot = _Slot(channel, keeper, orders, place, started)
    gc.collect()
    gc.freeze()
    channel.send(messages.HELLO)
    while True:
        slot.serve_one()


def _mount_proc() -> None:
    """Our processes only, and of those not even us; older kernels show more.

    A program may make itself such that ``hidepid`` hides it from us as well, so we keep what
    lies below open: there all are listed.
    """
    linux.mount("proc", "/proc", "proc", _FLAGS)
    below = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.mount("proc", "/proc", "proc", _FLAGS, "hidepid=2")
    with contextlib.suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    with contextlib.suppress(OSError):
        linux.mount("proc", "/proc", "proc", _FLAGS, "hidepid=2,subset=pid")
    processes.look_from(below)


class _Slot:
    """The state of one init between runs."""

    def __init__(
        self,
        channel: socket.socket,
        keeper: socket.socket,
        orders: socket.socket | None,
        place: Place,
        started: mmap.mmap,
    ) -> None:
        self.channel = channel
        self.keeper = keeper
        self.orders = orders
        self.file_bytes = place.file_bytes
        self._folders = [place.box, *(f"{place.box}/{name}" for name in ("work", "tmp", "shm"))]
        self._own_box = place.own_namespaces
        self.session: Session | None = None
        self.freezer: Freezer | None = None
        self.started = started
        self._meter = Meter(place.box, place.counted, place.own_namespaces)
        self.pristine = self._box_state()

    def _box_state(self) -> tuple[int, ...]:
        """Changes whenever anything was made in or done to the private file system.

        Empty when a program has taken a part of it away.
        """
        changes: list[int] = []
        try:
            for path in self._folders:
                found = os.stat(path)
                changes += (found.st_ctime_ns, found.st_mode)
        except OSError:
            return ()
        if self._own_box:
            free = os.statvfs(self._folders[0])
            changes += (free.f_ffree, free.f_bfree)
        return tuple(changes)

    def serve_one(self) -> None:
        """Wait for an order, run it, report, and leave the slot as it was before."""
        data, descriptors = messages.receive(self.channel)
        if not data:
            self._leave()
        if data[:1] == messages.FREEZER:
            self.freezer = Freezer(data[1], *descriptors)
            return
        if data[:1] != messages.RUN:  # a STOP that crossed our report
            return
        order = messages.Order.unpack(data)
        if order.file_bytes != self.file_bytes and self.session is None:
            self._renew(order.file_bytes)
        if order.flags & messages.SESSION:
            report = self._run_session(order, descriptors)
        else:
            report = self._run(order, descriptors)
        if order.flags & messages.FETCH:
            self._collect(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.channel.send(report.pack())
        kept = report.alive or order.flags & messages.KEEP_FILES
        if not kept and self._box_state() != self.pristine:
            self._renew(order.file_bytes)

    def _leave(self) -> NoReturn:
        """The host has hung up. What is killed in a freezer ends only when that lets it."""
        if self.session is not None and self.freezer is not None:
            processes.signal_all(signal.SIGKILL)
            self.freezer.thaw()
        os._exit(0)

    def _renew(self, file_bytes: int) -> None:
        self.keeper.send(b"%d" % file_bytes)
        if not self.keeper.recv(1):
            os._exit(1)
        self.file_bytes = file_bytes
        self.pristine = self._box_state()

    def _run(self, order: messages.Order, descriptors: list[int]) -> messages.Report:
        self.started[0] = 0
        self._meter.begin()
        began = time.monotonic()
        deadline = began + order.wall_seconds
        fork = self._fork_outside if self.orders is not None else self._fork_here
        reason, status, cpu = fork(order, descriptors, deadline)
        seconds = time.monotonic() - began
        if not self.started[0] and reason == messages.EXITED:
            reason = messages.NEVER_STARTED
        return messages.Report(reason, False, status, seconds, cpu)

    def _fork_outside(
        self, order: messages.Order, descriptors: list[int], deadline: float
    ) -> tuple[int, int, float]:
        """Let the forker run the program; how it ended is the forker's answer."""
        channel = self.orders
        assert channel is not None
        socket.send_fds(channel, [order.pack()], descriptors)
        reason = self._wait(channel.fileno(), order, deadline)
        if reason != messages.EXITED:
            self._kill_until(channel)
        answer = channel.recv(64)
        if not answer:
            os._exit(1)
        status, cpu = forker.ANSWER.unpack(answer)
        return reason, status, cpu + processes.end_all(0)[1]

    def _kill_until(self, channel: socket.socket) -> None:
        """The program may be about to be forked: kill until the forker says that it ended."""
        poller = select.poll()
        poller.register(channel, select.POLLIN)
        processes.signal_all(signal.SIGKILL)
        while not poller.poll(_KILL_MILLISECONDS):
            processes.signal_all(signal.SIGKILL)

    def _fork_here(
        self, order: messages.Order, descriptors: list[int], deadline: float
    ) -> tuple[int, int, float]:
        """Without a process namespace programs must be descendants of ours to be found."""
        child = linux.fork()
        if child == 0:
            forker.become_program(order, descriptors, self.started)
        exited = os.pidfd_open(child)
        reason = self._wait(exited, order, deadline)
        os.close(exited)
        return reason, *processes.end_all(child)

    def _wait(self, ended: int, order: messages.Order, deadline: float) -> int:
        """Until ``ended`` is readable, time is up, memory is used up, or the host says stop."""
        poller = select.poll()
        channel = self.channel.fileno()
        poller.register(ended, select.POLLIN)
        poller.register(channel, select.POLLIN)
        watching = False
        while True:
            left = deadline - time.monotonic()
            pause = min(max(0.0, left), 2 * _WATCH_SECONDS if not watching else _WATCH_SECONDS)
            ready = dict(poller.poll(pause * _MILLISECONDS))
            if ended in ready:
                return messages.EXITED
            if channel in ready:
                if not self.channel.recv(1):
                    os._exit(0)
                return messages.STOPPED
            if time.monotonic() >= deadline:
                return messages.TIMED_OUT
            watching = True
            if self._meter.exceeds(order.memory_bytes):
                return messages.MEMORY

    def _run_session(self, order: messages.Order, descriptors: list[int]) -> messages.Report:
        """One cell: let the interpreter continue, hand it the job, hold it afterwards."""
        began = time.monotonic()
        session = self.session
        if session is None:
            self._meter.begin()
            session = self.session = Session(order, self.started, self.freezer)
        session.hand_over(order, descriptors)
        reason = self._wait(session.fileno(), order, began + order.wall_seconds)
        if reason == messages.EXITED:
            outcome = session.outcome()
        else:
            outcome = self._interrupt(session, order)
        if outcome is not None and session.hold():
            code, out_of_memory = outcome
            if reason == messages.EXITED and out_of_memory:
                reason = messages.MEMORY
            seconds = time.monotonic() - began
            return messages.Report(reason, True, code << 8, seconds, 0.0)
        self.session = None
        status, cpu = session.end()
        return messages.Report(reason, False, status, time.monotonic() - began, cpu)

    def _interrupt(self, session: Session, order: messages.Order) -> tuple[int, bool] | None:
        """Have the cell raise ``KeyboardInterrupt``; its outcome if it obeyed in time."""
        session.interrupt()
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        if self._wait(session.fileno(), order, deadline) != messages.EXITED:
            return None
        return session.outcome()

    def _collect(self, descriptors: list[int]) -> None:
        """Read the files that the job asks for, as unprivileged as the program was.

        What a collector that failed has written lacks its end, which the host looks for.
        """
        child = os.fork()
        if child == 0:
            try:
                job = program.read_job(descriptors[0])
                program.collect(job, descriptors[-1], self.file_bytes)
            finally:
                os._exit(0)
        ended = os.pidfd_open(child)
        poller = select.poll()
        poller.register(ended, select.POLLIN)
        if not poller.poll(_COLLECT_SECONDS * _MILLISECONDS):
            os.kill(child, signal.SIGKILL)  # stopped from outside: what it wrote is not whole
        os.close(ended)
        os.waitpid(child, 0)
