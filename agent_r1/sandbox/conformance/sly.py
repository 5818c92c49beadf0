"""Programs that go around a limit, forge what the host reads, or wait for the next run."""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

from agent_r1.sandbox.base import Executor, Limits, RunStatus
from agent_r1.sandbox.conformance.cases import Case, Feature, describe, run, syscall_denied

_LIMITED: Final = frozenset({Feature.STATUSES, Feature.LIMITS})
_ISOLATED: Final = frozenset({Feature.ISOLATION})
_SESSIONS: Final = frozenset({Feature.SESSIONS})
_MIB: Final = 1 << 20


def _bounded(name: str, claim: str, code: str, **limits: Any) -> Case:
    """The program prints "breach" once it holds far more than its limit at one time."""

    def check(executor: Executor) -> None:
        result = run(executor, code, limits=Limits(wall_seconds=20.0, **limits))
        assert "breach" not in result.stdout, describe(result)
        assert result.status is not RunStatus.TIMEOUT, describe(result)
        after = run(executor, "print('alive')")
        assert after.stdout == "alive\n", f"the next program failed: {describe(after)}"

    return Case(name, claim, check, _LIMITED, hostile=True)


_SHARED_CHILDREN: Final = """
import mmap, os
reader, writer = os.pipe()
for _ in range(5):
    if os.fork() == 0:
        os.close(reader)
        held = mmap.mmap(-1, 160 << 20)
        for _ in range(160):
            held.write(bytes(1 << 20))
        import time; time.sleep(0.6)
        os.write(writer, b"x"); time.sleep(0.6); os._exit(0)
os.close(writer)
filled = 0
while os.read(reader, 1):
    filled += 1
print("breach" if filled == 5 else "held", flush=True)
"""
_HIDE: Final = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"

MEMORY: Final = (
    _bounded(
        "shared_memory_of_children",
        "what children map together counts",
        _SHARED_CHILDREN,
        memory_bytes=256 * _MIB,
    ),
    _bounded(
        "memory_of_the_hidden",
        "also of processes that let nobody look into them",
        _HIDE + _SHARED_CHILDREN,
        memory_bytes=256 * _MIB,
    ),
    _bounded(
        "unmapped_shared_memory",
        "shared pages count that are mapped no more",
        """
        import ctypes, time
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        for _ in range(50):
            size = 16 << 20
            place = libc.mmap(None, size, 3, 0x21, -1, 0)
            ctypes.memset(place, 1, size)
            libc.munmap(place + 4096, size - 4096)
        time.sleep(0.6)
        print("breach")
        """,
        memory_bytes=256 * _MIB,
    ),
    _bounded(
        "socket_buffers",
        "what lies in sockets counts",
        """
        import socket
        pairs, held = [], 0
        for _ in range(192):
            a, b = socket.socketpair()
            a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
            a.setblocking(False)
            pairs.append((a, b))
            try:
                while True:
                    held += a.send(bytes(65536))
            except BlockingIOError:
                pass
        print("breach" if held > 192 << 20 else "held")
        """,
        memory_bytes=96 * _MIB,
    ),
    _bounded(
        "socket_buffers_of_loopback",
        "and on the program's own loopback",
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        ends, held = [], 0
        for _ in range(160):
            try:
                a = socket.create_connection(server.getsockname())
            except OSError:
                break
            ends += [a, server.accept()[0]]
            a.setblocking(False)
            try:
                while True:
                    held += a.send(bytes(65536))
            except BlockingIOError:
                pass
        print("breach" if held > 192 << 20 else "held")
        """,
        memory_bytes=96 * _MIB,
    ),
)


def _charged_to_the_next(executor: Executor) -> None:
    greedy = """
    import os, time
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            held = bytearray(96 << 20)
            time.sleep(0.5)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    """
    for _ in range(4):
        run(executor, greedy, limits=Limits(memory_bytes=256 * _MIB))
        after = run(executor, "import os; os.kill(os.getpid(), 9)")
        assert after.status is RunStatus.KILLED, describe(after)


def _forged_timeout(executor: Executor) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)"
    result = run(executor, code, limits=Limits(cpu_seconds=5))
    assert result.status is RunStatus.KILLED, describe(result)


FORGERIES: Final = (
    Case(
        "memory_kill_of_a_child",
        "what one program ran out of is not charged to the next",
        _charged_to_the_next,
        _LIMITED,
        True,
    ),
    Case("forged_timeout", "a signal is no time-out", _forged_timeout, _LIMITED, True),
)


def _forged_files(executor: Executor) -> None:
    """A thread of a session looks for the memory that its files are collected in."""
    look = """
    import os, threading
    def look():
        while True:
            for pid in os.listdir('/proc'):
                try:
                    for fd in os.listdir(f'/proc/{pid}/fd'):
                        place = f'/proc/{pid}/fd/{fd}'
                        if 'memfd:' in os.readlink(place):
                            os.pwrite(os.open(place, os.O_RDWR), b'FORGED' * 9, 0)
                except OSError:
                    pass
    threading.Thread(target=look, daemon=True).start()
    open('a', 'w').write('true')
    """
    try:
        run(executor, look, session="forger", fetch_files=("a",))
        for _ in range(3):
            result = run(executor, "pass", session="forger", fetch_files=("a",))
            assert dict(result.files) == {"a": b"true"}, result.files
    finally:
        executor.close_session("forger")


def _wakers(executor: Executor) -> None:
    """Processes that wake each other stand still between cells, or their session is ended."""
    code = """
    import os, signal, mmap, time
    shared = mmap.mmap(-1, 8)
    shared[:] = bytes(8)
    pids = [os.getpid()]
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            while True:
                for other in pids:
                    os.kill(other, signal.SIGCONT)
                count = int.from_bytes(shared[:], 'little') + 1
                shared[:] = count.to_bytes(8, 'little')
        pids.append(pid)
    time.sleep(0.2)
    """
    ask = "print(int.from_bytes(shared[:], 'little'))"
    try:
        run(executor, code, session="waker")
        first = run(executor, ask, session="waker")
        if first.status is not RunStatus.SUCCESS:
            return  # ended, and its state with it
        threading.Event().wait(0.6)
        second = run(executor, ask, session="waker")
        if second.status is RunStatus.SUCCESS:
            grown = int(second.stdout) - int(first.stdout)
            assert grown < 50_000, f"it counted on by {grown} between two cells"
    finally:
        executor.close_session("waker")


SLEEPERS: Final = (
    Case("forged_files", "fetched files are the program's files", _forged_files, _SESSIONS, True),
    Case("wakers", "no process of a session wakes another", _wakers, _SESSIONS, True),
    syscall_denied(
        "posix_timer",
        "no timer wakes a stopped session",
        "call(222, 107, 1, 0, ctypes.byref(ctypes.c_void_p()))",
    ),
    syscall_denied(
        "chosen_signal",
        "nor an event of a descriptor",
        "import fcntl; fcntl.fcntl(0, 10, 18)",
    ),
)


def _host_loopback(executor: Executor) -> None:
    """What listens beside the suite is not reached; of a sandbox elsewhere, not beside it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"""
        import socket
        try:
            socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 1)
            print("breach")
        except OSError as error:
            print("held", error)
        """
        result = run(executor, code)
    assert result.stdout.startswith("held"), describe(result)


NETWORK: Final = (
    Case("host_loopback", "a server of the host is out of reach", _host_loopback, _ISOLATED, True),
    syscall_denied("multipath_tcp", "no rare protocols", "call(41, 198, 2, 1, 262)"),
    syscall_denied("udp_lite", "nor this one", "call(41, 198, 2, 2, 136)"),
    syscall_denied("netlink_audit", "nor the kernel's other doors", "call(41, 198, 16, 3, 9)"),
)

CASES: Final = (*MEMORY, *FORGERIES, *SLEEPERS, *NETWORK)
