"""What a forked child does before, while and after it runs the user's program."""

from __future__ import annotations

import contextlib
import gc
import io
import marshal
import mmap
import os
import resource
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from agent_r1.sandbox.guest import landlock, linux, messages, python

_state: dict[str, Any] = {}
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FIXED: Final = {
    resource.RLIMIT_CORE: 1,  # below the smallest dump, and 1 is never given to a handler either
    resource.RLIMIT_NOFILE: 512,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_RTPRIO: 0,
}


def prepare(box: str, user: int | None, rules: int | None, *, confined: bool) -> None:
    """Once per slot: measure what a child starts with and set what never changes."""
    with open("/proc/self/statm") as file:
        fields = [int(field) for field in file.read().split()]
    _state.update(size=fields[0] * _PAGE, data=fields[5] * _PAGE)
    _state.update(box=box, work=f"{box}/work", user=user, rules=rules, confined=confined)
    if not confined:
        os.environ.update(HOME=_state["work"], TMPDIR=f"{box}/tmp")
    _state["others"] = _count_others(user, confined)
    python.prepare(_state["work"])
    for kind, value in _FIXED.items():
        _hold(kind, value)


def _hold(kind: int, value: int, more: int = 0) -> None:
    """Limit ourselves to ``value`` (and ``more`` beyond a warning), or to what we may have."""
    try:
        resource.setrlimit(kind, (value, value + more))
    except ValueError:  # above what we were started with
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (min(value, hard), min(value + more, hard)))


def _count_others(user: int | None, confined: bool) -> int:
    """Threads that the kernel counts together with those of a program."""
    if user is not None:
        return 0
    if confined:
        return 3  # keeper, forker and init
    count = 64  # for what our user starts meanwhile
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def read_job(descriptor: int) -> dict[str, Any]:
    """The job as the host packed it."""
    size = os.fstat(descriptor).st_size
    job: dict[str, Any] = marshal.loads(os.pread(descriptor, size, 0))
    return job


def attach(descriptors: list[int], has_input: bool) -> None:
    """Make the descriptors of a run the standard streams: job, output, error, maybe input."""
    source = descriptors[3] if has_input else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(source, 0)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[2], 2)


def become(job: dict[str, Any], memory_bytes: int, started: mmap.mmap, *, marked: bool) -> NoReturn:
    """Confine this process and run the job in it; ``marked``: as the first victim already."""
    confine(job, memory_bytes, started, marked=marked)
    command = job.get("command")
    if command:
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execve(command[0], command, job["environment"] | _places())
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            os._exit(126)
    code, out_of_memory = python.run(job)
    if out_of_memory:
        _die_of_memory()
    os._exit(code)


def _die_of_memory() -> None:
    """Say that an uncaught ``MemoryError`` was the end: not by words, which programs print too."""
    signal.signal(messages.OUT_OF_MEMORY, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [messages.OUT_OF_MEMORY])
    os.kill(os.getpid(), messages.OUT_OF_MEMORY)


def confine(
    job: dict[str, Any],
    memory_bytes: int,
    started: mmap.mmap,
    *,
    cpu_limited: bool = True,
    marked: bool = False,
) -> None:
    """Drop every privilege, apply the limits, place the files, mark the page ``started``."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a slot's processes ignore
    threading.main_thread()._native_id = os.getpid()  # type: ignore[attr-defined]
    _limit(job, memory_bytes)
    if not marked:
        open_score()
        become_victim()
        forget_score()
    if cpu_limited:
        _hold(resource.RLIMIT_CPU, job["cpu_seconds"], 1)
    _drop_privileges()
    os.chdir(_state["work"])
    place_files(job)
    started[0] = 1
    started.close()


def open_score() -> None:
    """Keep open where this process says how soon it shall be killed for memory.

    Children inherit what it says. A process that has changed its user is let in there only
    while it is dumpable.
    """
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError):
        _state["score"] = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)


def become_victim() -> bool:
    """When the machine runs out of memory the kernel shall not choose the trainer."""
    score = _state.get("score")
    if score is None:
        return False
    os.pwrite(score, b"1000", 0)
    return True


def be_no_victim() -> None:
    """What was forked meanwhile stays one."""
    os.pwrite(_state["score"], b"0", 0)


def forget_score() -> None:
    """In a process that was forked from the one that opened it."""
    score = _state.pop("score", None)
    if score is not None:
        os.close(score)


def _limit(job: dict[str, Any], memory_bytes: int) -> None:
    if job.get("command"):
        data = memory_bytes
        space = job.get("address_bytes")
    else:
        data = _state["data"] + memory_bytes
        space = _state["size"] + 2 * memory_bytes
    if space is not None:
        _hold(resource.RLIMIT_AS, space)
    _hold(resource.RLIMIT_DATA, data)
    _hold(resource.RLIMIT_NPROC, job["processes"] + _state["others"])
    _hold(resource.RLIMIT_FSIZE, job["file_bytes"])


def _drop_privileges(*, dumpable: bool = True) -> None:
    """``dumpable``: other processes of the same user may look into this one's ``/proc``."""
    user = _state["user"]
    if user is not None:
        if not _state["confined"]:
            os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    else:
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_DUMPABLE, int(dumpable))
    if not _state["confined"]:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if _state["rules"] is not None:
        landlock.obey(_state["rules"])


def _places() -> dict[str, str]:
    """Where home and temporary files are, for a program that is executed."""
    if _state["confined"]:
        return {}
    return {"HOME": _state["work"], "TMPDIR": f"{_state['box']}/tmp"}


def place_files(job: dict[str, Any]) -> None:
    """Write the files of the job into the working directory."""
    for path, content in job["files"].items():
        folder = os.path.dirname(path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def collect(job: dict[str, Any], descriptor: int, limit: int) -> None:
    """Write the regular files among those asked for, of ``limit`` bytes together.

    Processes of the program may run beside this one: they must not get at its descriptors,
    of which one is read by the host, so it is never dumpable.
    """
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    _drop_privileges(dumpable=False)
    messages.write_files(descriptor, _opened(job["fetch"]), limit)


def _opened(paths: list[str]) -> Iterator[tuple[bytes, int]]:
    """The name and a descriptor of each regular file; that is closed when the next is asked for."""
    for path in paths:
        try:
            name = os.fsencode(path)
            place = os.path.join(os.fsencode(_state["work"]), name)
            file = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                yield name, file
        finally:
            os.close(file)


class Notebook(python.Main):
    """The namespace of a session: cell after cell runs in it."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job["code"], job["seed"])
        gc.enable()

    def run(self, job: dict[str, Any]) -> int:
        """Run one cell; an exit code, 130 for one that was interrupted."""
        self.out_of_memory = False
        try:
            place_files(job)
        except OSError as error:  # what earlier cells made is in the way, or there is no room
            sys.stderr.write(f"the files of this run cannot be placed: {error}\n")
            return python.flush(1)
        self.show_source(job["code"])
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
        code = self.execute(job["code"], job["last_expression"])
        return python.flush(code)
