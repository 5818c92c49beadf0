"""The host's side of one run: send the job, collect the output, judge the end."""

from __future__ import annotations

import asyncio
import fcntl
import marshal
import math
import os
import re
import select
import signal
import socket
import time
from typing import Final

from agent_r1.errors import SandboxError
from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.jobs import Job

_CHUNK: Final = 65536
_PIPE_CHUNKS: Final = 32
_GRACE: Final = 5.0
"""Seconds past the wall clock after which init is taken for dead."""
_CPU_SHARE: Final = 0.5
"""Of the CPU limit, from which on SIGXCPU is taken for the kernel's. It counts whole ticks for
that, and exactly in what it reports: on a busy machine 0.84 s of 1 s were seen."""
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_NO_MEMORY: Final = re.compile(
    r"^terminate called after throwing an instance of 'std::bad_alloc'$"
    r"|^FATAL ERROR: .*JavaScript heap out of memory$",
    re.MULTILINE,
)
"""What the run-time libraries of C++ and JavaScript say before they abort."""
_LAST_WORDS: Final = 4096


class SlotLost(SandboxError):
    """The slot's processes ended under a run: an isolated program can safely run again."""


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
        """Take what is there; past the cap it is thrown away. False at the end."""
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
        if data:
            self.size += len(data)
            self.chunks.append(data)
        return True

    def drain(self) -> None:
        """Take the rest after the run; more than a pipe holds cannot be there."""
        for _ in range(_PIPE_CHUNKS):
            before = self.size
            if self.overflowed or not self.read() or self.size == before:
                return

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
    """One run on one slot; the step that waits for its end."""

    def __init__(self, channel: socket.socket, request: RunRequest, job: Job, flags: int) -> None:
        self.channel = channel
        self.report: messages.Report | None = None
        self._limits = request.limits
        self._wall = job.wall_seconds
        self._interpreted = "command" not in job.payload
        self._cpu = math.inf if flags & messages.SESSION else job.payload["cpu_seconds"]
        self._stopping = False
        self._fetched = -1
        self._names = {name: path for path in job.payload["fetch"] if (name := _file_name(path))}
        cap = request.limits.output_bytes
        self.out, self.err = Stream(-1, cap), Stream(-1, cap)
        sent: list[int] = []
        try:
            for stream in (self.out, self.err):
                stream.descriptor, end = os.pipe2(os.O_CLOEXEC)
                sent.append(end)
                os.set_blocking(stream.descriptor, False)
                os.fchmod(end, 0o222)  # a program may open /dev/stdout, whoever it is
            sent.insert(0, sealed_memory("job", marshal.dumps(job.payload)))
            self._send(request.stdin, bool(self._names), flags, sent)
        except OSError as error:
            self.close()
            raise SlotLost(f"the sandbox process is gone: {error}") from error
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in sent:
                os.close(descriptor)

    def _send(self, stdin: str, fetch: bool, flags: int, sent: list[int]) -> None:
        if stdin:
            flags |= messages.STDIN
            sent.append(sealed_memory("stdin", _encoded(stdin)))
        if fetch:
            flags |= messages.FETCH
            self._fetched = os.memfd_create("files", os.MFD_CLOEXEC)
            sent.append(os.dup(self._fetched))
        limits = self._limits
        order = messages.Order(self._wall, limits.memory_bytes, limits.file_bytes, flags)
        socket.send_fds(self.channel, [order.pack()], sent)

    def _readable(self, descriptor: int) -> bool:
        """Handle one event. False when this descriptor has nothing more to say."""
        if descriptor == self.channel.fileno():
            self.report = self._receive()
            return True
        stream = self.out if descriptor == self.out.descriptor else self.err
        more = stream.read()
        if stream.overflowed and not self._stopping:
            self._stop()
        return more

    def _stop(self) -> None:
        """Have the program ended now; its report follows."""
        self._stopping = True
        try:
            self.channel.send(messages.STOP)
        except OSError as error:
            raise SlotLost(f"the sandbox process is gone: {error}") from error

    def _receive(self) -> messages.Report:
        try:
            data = self.channel.recv(4096)
        except OSError as error:
            raise SlotLost(f"the sandbox process is gone: {error}") from error
        if not data:
            raise SlotLost("the sandbox process ended in the middle of a run")
        if data[:1] != messages.DONE:
            raise SlotLost(f"the sandbox process failed: {data[1:].decode('utf-8', 'replace')}")
        return messages.Report.unpack(data)

    def now(self) -> None:
        """Wait for the report, taking output meanwhile, in this thread."""
        deadline = time.monotonic() + self._wall + _GRACE
        poller = select.poll()
        for watched in (self.channel.fileno(), self.out.descriptor, self.err.descriptor):
            poller.register(watched, select.POLLIN)
        while self.report is None:
            events = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not events:
                raise SlotLost("the sandbox did not end a program in time")
            for descriptor, _ in events:
                if not self._readable(descriptor):
                    poller.unregister(descriptor)

    async def later(self) -> None:
        """Wait for the report, taking output meanwhile, on the running event loop."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def ready(descriptor: int) -> None:
            try:
                if not self._readable(descriptor):
                    loop.remove_reader(descriptor)
            except SandboxError as error:
                if not done.done():
                    done.set_exception(error)
            if self.report is not None and not done.done():
                done.set_result(None)

        watched = (self.channel.fileno(), self.out.descriptor, self.err.descriptor)
        for descriptor in watched:
            loop.add_reader(descriptor, ready, descriptor)
        timer = loop.call_later(self._wall + _GRACE, _late, done)
        try:
            await done
        finally:
            timer.cancel()
            for descriptor in watched:
                loop.remove_reader(descriptor)

    def close(self) -> None:
        """Give back the descriptors."""
        for descriptor in (self.out.descriptor, self.err.descriptor, self._fetched):
            if descriptor >= 0:
                os.close(descriptor)
        self.out.descriptor = self.err.descriptor = self._fetched = -1

    def result(self, *, ran_out: bool = False) -> RunResult:
        """Judge the finished run; ``ran_out``: the kernel killed in this slot for memory."""
        report = self.report
        assert report is not None
        self.out.drain()
        self.err.drain()
        stdout, stderr = self.out.text(), self.err.text()
        if report.reason == messages.NEVER_STARTED and not ran_out:
            raise SandboxError(f"the sandbox could not start a program: {stderr.strip()}")
        overflowed = self.out.overflowed or self.err.overflowed
        ran_out = ran_out or self._says_that_it_ran_out(report.wait_status, stderr)
        status, code = judge(report, overflowed, ran_out, self._cpu)
        if status is RunStatus.MEMORY_LIMIT and code == -messages.OUT_OF_MEMORY:
            code = 1  # as the interpreter ends by itself
        return RunResult(
            status=status,
            stdout=stdout,
            stderr=stderr,
            exit_code=code,
            seconds=report.seconds,
            files=self._files(),
        )

    def _says_that_it_ran_out(self, wait_status: int, stderr: str) -> bool:
        """As the run-time of its language does where no limit of the kernel's was met.

        A program can end in the same way on purpose, as it can use up its memory on purpose;
        that the words are printed is not enough.
        """
        number = wait_status & 0x7F
        if self._interpreted:
            return number == messages.OUT_OF_MEMORY
        return number == signal.SIGABRT and bool(_NO_MEMORY.search(stderr[-_LAST_WORDS:]))

    def cut_short(self) -> RunResult:
        """The result of a run whose init the kernel killed for memory."""
        self.out.drain()
        self.err.drain()
        return RunResult(
            status=RunStatus.MEMORY_LIMIT,
            stdout=self.out.text(),
            stderr=self.err.text(),
            exit_code=-signal.SIGKILL,
        )

    def _files(self) -> dict[str, bytes]:
        if self._fetched < 0:
            return {}
        data = os.pread(self._fetched, os.fstat(self._fetched).st_size, 0)
        found = messages.unpack_files(data, len(self._names))
        if found is None:
            raise SandboxError("the files of a program could not be collected")
        return {
            self._names[name]: content for name, content in found.items() if name in self._names
        }


def _file_name(path: str) -> bytes | None:
    """The name as the file system has it; None for one that no file can have."""
    try:
        return os.fsencode(path)
    except UnicodeEncodeError:
        return None


def _encoded(text: str) -> bytes:
    """UTF-8; text out of JSON may hold halves of surrogate pairs, which go through as they are."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _late(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(SlotLost("the sandbox did not end a program in time"))


def judge(
    report: messages.Report, overflowed: bool, ran_out: bool, cpu_limit: float
) -> tuple[RunStatus, int | None]:
    """Status and exit code of a run from what init and the kernel say about it.

    At its CPU limit a program gets SIGXCPU and, if it ignores that, SIGKILL a second later. One
    that sends itself the signal before has not run out of time.
    """
    code = os.waitstatus_to_exitcode(report.wait_status)
    if overflowed:  # also when time was up before it could be told to end
        return RunStatus.OUTPUT_LIMIT, code
    if report.reason == messages.TIMED_OUT:
        return RunStatus.TIMEOUT, None
    spent = report.cpu_seconds > cpu_limit * _CPU_SHARE
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and spent:
        return RunStatus.TIMEOUT, None
    if ran_out or report.reason == messages.MEMORY:
        return RunStatus.MEMORY_LIMIT, code
    if code == 0:
        return RunStatus.SUCCESS, 0
    return (RunStatus.ERROR if code > 0 else RunStatus.KILLED), code
