"""Process 1 of a slot: forks one program at a time, ends all that it left, reports.

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
from typing import NoReturn

from agent_r1.sandbox.guest import linux, messages, program, seccomp

_BOX = ("/sandbox", "/sandbox/work", "/sandbox/tmp", "/sandbox/shm")
_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_MILLISECONDS = 1000


def main(
    channel: socket.socket, keeper: socket.socket, file_bytes: int, *, own_user: bool
) -> NoReturn:
    """Serve the host on ``channel`` until it hangs up."""
    linux.mount("proc", "/proc", "proc", _FLAGS, "hidepid=2")
    with contextlib.suppress(OSError), open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    linux.drop_bounding_set()
    if not own_user:  # the program has our user id: keep it out of our /proc entries
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    linux.install_seccomp(seccomp.build_filter())
    program.prepare(own_user=own_user)
    slot = _Slot(channel, keeper, file_bytes)
    gc.collect()
    gc.freeze()
    channel.send(messages.HELLO)
    while True:
        slot.serve_one()


class _Slot:
    """The state of one init between runs."""

    def __init__(self, channel: socket.socket, keeper: socket.socket, file_bytes: int) -> None:
        self.channel = channel
        self.keeper = keeper
        self.file_bytes = file_bytes
        self.started = mmap.mmap(-1, mmap.PAGESIZE)
        self.pristine = self._box_state()

    def _box_state(self) -> tuple[int, ...]:
        """Changes whenever anything was made in or done to the private file system."""
        stats = [os.stat(path) for path in _BOX]
        free = os.statvfs("/sandbox")
        return (free.f_ffree, free.f_bfree, *(s.st_ctime_ns for s in stats))

    def serve_one(self) -> None:
        """Wait for an order, run it, report, and leave the slot as it was before."""
        data, descriptors = messages.receive(self.channel)
        if not data:
            os._exit(0)
        if data[:1] != messages.RUN:  # a STOP that crossed our report
            return
        order = messages.Order.unpack(data)
        if order.file_bytes != self.file_bytes:
            self._renew(order.file_bytes)
        report = self._run(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if order.flags & messages.KEEP_FILES:
            self.channel.send(report)
            return
        self.channel.send(report)
        if self._box_state() != self.pristine:
            self._renew(order.file_bytes)

    def _renew(self, file_bytes: int) -> None:
        self.keeper.send(b"%d" % file_bytes)
        if not self.keeper.recv(1):
            os._exit(1)
        self.file_bytes = file_bytes
        self.pristine = self._box_state()

    def _run(self, order: messages.Order, descriptors: list[int]) -> bytes:
        self.started[0] = 0
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            self._in_child(order, descriptors)
        reason = self._wait(child, began + order.wall_seconds)
        status, cpu = _end_all(child)
        seconds = time.monotonic() - began
        if not self.started[0] and reason == messages.EXITED:
            reason = messages.NEVER_STARTED
        if order.flags & messages.FETCH:
            self._collect(descriptors)
        return messages.Report(reason, status, seconds, cpu).pack()

    def _in_child(self, order: messages.Order, descriptors: list[int]) -> NoReturn:
        """Become the program. Descriptors: job, standard output and error, maybe input."""
        try:
            job = program.read_job(descriptors[0])
            if order.flags & messages.STDIN:
                os.dup2(descriptors[3], 0)
            os.dup2(descriptors[1], 1)
            os.dup2(descriptors[2], 2)
            os.closerange(3, 64)
            program.become(job, order.memory_bytes, self.started)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)

    def _collect(self, descriptors: list[int]) -> None:
        """Read the files that the job asks for, as unprivileged as the program was."""
        child = os.fork()
        if child == 0:
            try:
                job = program.read_job(descriptors[0])
                program.collect(job, descriptors[-1], self.file_bytes)
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    def _wait(self, child: int, deadline: float) -> int:
        poller = select.poll()
        exited = os.pidfd_open(child)
        channel = self.channel.fileno()
        poller.register(exited, select.POLLIN)
        poller.register(channel, select.POLLIN)
        reason = messages.EXITED
        left = deadline - time.monotonic()
        ready = dict(poller.poll(max(0.0, left * _MILLISECONDS)))
        if exited not in ready:
            reason = messages.TIMED_OUT
            if channel in ready:
                reason = messages.STOPPED
                if not self.channel.recv(1):
                    os._exit(0)
        os.close(exited)
        return reason


def _end_all(child: int) -> tuple[int, float]:
    """Kill and reap every process of this slot but ourselves."""
    status, cpu = 0, 0.0
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        try:
            pid, ended, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return status, cpu
        cpu += usage.ru_utime + usage.ru_stime
        if pid == child:
            status = ended
