"""The host's side of one run: send the job, collect the output, judge the end."""

from __future__ import annotations

import fcntl
import marshal
import os
import re
import signal
import socket
from collections.abc import Mapping
from typing import Any, Final

from agent_r1.errors import SandboxError
from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus
from agent_r1.sandbox.guest import messages

_CHUNK: Final = 65536
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_NO_MEMORY: Final = re.compile(r"^(?:[\w.]*MemoryError\b|terminate called.*std::bad_alloc)")


class SlotLost(SandboxError):
    """The slot's processes ended under a run. A program is isolated, so running it again is safe."""


class Stream:
    """One captured output: the read end of its pipe and the bytes up to the cap."""

    __slots__ = ("cap", "chunks", "descriptor", "overflowed", "size")

    def __init__(self, descriptor: int, cap: int) -> None:
        self.descriptor = descriptor
        self.cap = cap
        self.size = 0
        self.chunks: list[bytes] = []
        self.overflowed = False

    def read(self) -> bool:
        """Take what is there. False when nothing will follow."""
        try:
            data = os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        room = self.cap - self.size
        if len(data) > room:
            data = data[:room]
            self.overflowed = True
        self.size += len(data)
        self.chunks.append(data)
        return not self.overflowed

    def drain(self) -> None:
        """Take the rest, after every writer is gone."""
        while not self.overflowed and self.read():
            pass

    def text(self) -> str:
        """The output; undecodable bytes become the replacement character."""
        text = b"".join(self.chunks).decode("utf-8", "replace")
        if self.overflowed:
            text += f"\n[output cut: more than {self.cap} bytes]\n"
        return text


def sealed_memory(name: str, data: bytes) -> int:
    """A descriptor of ``data`` that its reader cannot alter."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


class Exchange:
    """One run on one slot. ``readable`` is called for each descriptor that became so."""

    def __init__(self, channel: socket.socket, request: RunRequest, job: Mapping[str, Any]) -> None:
        self.channel = channel
        self.request = request
        self.report: messages.Report | None = None
        self._fetched = -1
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        cap = request.limits.output_bytes
        self.out, self.err = Stream(out, cap), Stream(err, cap)
        self._stopping = False
        sent = [sealed_memory("job", marshal.dumps(job)), out_end, err_end]
        try:
            self._send(job, sent)
        except OSError as error:
            self.close()
            raise SlotLost(f"the sandbox process is gone: {error}") from error
        finally:
            for descriptor in sent:
                os.close(descriptor)

    def _send(self, job: Mapping[str, Any], sent: list[int]) -> None:
        flags = int(job.get("flags", 0))
        limits = self.request.limits
        if self.request.stdin:
            flags |= messages.STDIN
            sent.append(sealed_memory("stdin", self.request.stdin.encode("utf-8", "replace")))
        if job["fetch"]:
            flags |= messages.FETCH
            self._fetched = os.memfd_create("files", os.MFD_CLOEXEC)
            sent.append(os.dup(self._fetched))
        order = messages.Order(job["wall"], limits.memory_bytes, limits.file_bytes, flags)
        socket.send_fds(self.channel, [order.pack()], sent)

    def readable(self, descriptor: int) -> bool:
        """Handle one event. True when the run is over; False for an ended stream too."""
        if descriptor == self.channel.fileno():
            return self._receive()
        stream = self.out if descriptor == self.out.descriptor else self.err
        if not stream.read() and stream.overflowed and not self._stopping:
            self.stop()
        return False

    def stop(self) -> None:
        """Have the program ended now; its report follows."""
        self._stopping = True
        try:
            self.channel.send(messages.STOP)
        except OSError as error:
            raise SlotLost(f"the sandbox process is gone: {error}") from error

    def _receive(self) -> bool:
        try:
            data = self.channel.recv(4096)
        except OSError as error:
            raise SlotLost(f"the sandbox process is gone: {error}") from error
        if not data:
            raise SlotLost("the sandbox process ended in the middle of a run")
        self.report = messages.Report.unpack(data)
        return True

    def close(self) -> None:
        """Give back the descriptors."""
        for descriptor in (self.out.descriptor, self.err.descriptor, self._fetched):
            if descriptor >= 0:
                os.close(descriptor)
        self.out.descriptor = self.err.descriptor = self._fetched = -1

    def result(self) -> RunResult:
        """Judge the finished run. Closes the exchange."""
        report = self.report
        assert report is not None
        self.out.drain()
        self.err.drain()
        files = self._files()
        self.close()
        stdout, stderr = self.out.text(), self.err.text()
        if report.reason == messages.NEVER_STARTED:
            raise SandboxError(f"the sandbox could not start a program: {stderr.strip()}")
        status, code = judge(report, self.out.overflowed or self.err.overflowed, stderr)
        return RunResult(
            status=status,
            stdout=stdout,
            stderr=stderr,
            exit_code=code,
            seconds=report.seconds,
            files=files,
        )

    def _files(self) -> dict[str, bytes]:
        if self._fetched < 0:
            return {}
        data = os.pread(self._fetched, os.fstat(self._fetched).st_size, 0)
        if not data:
            return {}
        found: dict[str, bytes] = marshal.loads(data)
        return found


def judge(report: messages.Report, overflowed: bool, stderr: str) -> tuple[RunStatus, int | None]:
    """Status and exit code of a run from what init and the kernel say about it."""
    code = os.waitstatus_to_exitcode(report.wait_status)
    if report.reason == messages.TIMED_OUT:
        return RunStatus.TIMEOUT, None
    if overflowed:
        return RunStatus.OUTPUT_LIMIT, code
    if code == -signal.SIGXCPU:
        return RunStatus.TIMEOUT, None
    if report.reason == messages.MEMORY:
        return RunStatus.MEMORY_LIMIT, code
    if code == 0:
        return RunStatus.SUCCESS, 0
    if _ran_out_of_memory(stderr):
        return RunStatus.MEMORY_LIMIT, code
    return (RunStatus.ERROR if code > 0 else RunStatus.KILLED), code


def _ran_out_of_memory(stderr: str) -> bool:
    lines = stderr.rstrip().rsplit("\n", 1)
    return bool(_NO_MEMORY.match(lines[-1]))
