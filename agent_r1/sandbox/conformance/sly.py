"""Programs that go around a limit, forge what the host reads, or wait for the next run."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
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


def _first_victim(executor: Executor) -> None:
    code = "print(open('/proc/self/oom_score_adj').read(), end='')"
    try:
        for options in ({}, {"session": "victim"}):
            result = run(executor, code, **options)
            assert result.stdout == "1000\n", describe(result)
        result = run(executor, "cat /proc/self/oom_score_adj", language="bash")
        assert result.stdout == "1000\n", describe(result)
    finally:
        executor.close_session("victim")


FORGERIES: Final = (
    Case(
        "first_victim",
        "where the machine's memory ends a program is killed before anything else",
        _first_victim,
        _SESSIONS,
    ),
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


def _leaderless(executor: Executor) -> None:
    """The same of processes whose first thread has ended, so that they look as if they had."""
    code = """
    import ctypes, mmap, os, signal, struct, threading, time
    gaps = mmap.mmap(-1, 4096)
    pids = [os.getpid()]
    def wake(number):
        last, most, rounds = time.monotonic(), 0, 0
        while True:
            for other in pids[1:]:
                try: os.kill(other, signal.SIGCONT)
                except OSError: pass
            now = time.monotonic()
            last, most = now, max(most, int((now - last) * 1000))
            rounds += 1
            gaps[16 * number:16 * number + 16] = struct.pack('QQ', most, rounds)
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            for more in range(2):
                threading.Thread(target=wake, args=(2 * number + more,), daemon=True).start()
            ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
        pids.append(pid)
    def look():
        return [struct.unpack_from('QQ', gaps, 16 * number) for number in range(6)]
    while min(rounds for _, rounds in look()) < 2:
        time.sleep(0.01)
    time.sleep(0.1)
    """
    ask = """
    before = look()  # and now each thread has to say how long it stood still
    while any(now[1] < old[1] + 2 for now, old in zip(look(), before)):
        time.sleep(0.01)
    print(min(most for most, _ in look()))
    """
    try:
        for _ in range(3):
            run(executor, code, session="leaderless")
            threading.Event().wait(0.8)
            result = run(executor, ask, session="leaderless")
            if result.status is RunStatus.SUCCESS:  # else ended, and its state with it
                milliseconds = int(result.stdout)
                assert milliseconds > 400, f"a thread stood still for {milliseconds} ms of 800"
            executor.close_session("leaderless")
    finally:
        executor.close_session("leaderless")


def _odd_names(executor: Executor) -> None:
    """What a program calls itself and its sockets is read by the sandbox, too."""
    code = r"""
    import ctypes, socket, time
    for name in (b") R 1 1", b"\n) T", b"\xff\xfe\x80"):
        ctypes.CDLL(None).prctl(15, name)
        held = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
        for number, one in enumerate(held):
            one.bind(f"a\n\n{number} 2\n".encode() + name.strip())
        time.sleep(0.3)
        [one.close() for one in held]
        import os
        [os.unlink(path) for path in os.listdir(b".")]
    print("named")
    """
    try:
        for options in ({}, {"session": "named"}, {"session": "named"}):
            result = run(executor, code, **options)
            assert (result.status, result.stdout) == (RunStatus.SUCCESS, "named\n"), describe(
                result
            )
    finally:
        executor.close_session("named")


SLEEPERS: Final = (
    Case("odd_names", "names that a program chose confuse nobody", _odd_names, _SESSIONS, True),
    Case("leaderless", "nor does a thread that was left", _leaderless, _SESSIONS, True),
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
    syscall_denied(
        "lease",
        "nobody on the host waits for a program to let go of a file",
        "import fcntl; fcntl.fcntl(open('/usr/bin/env'), 1024, 0)",
    ),
    syscall_denied(
        "folder_events",
        "nor does what happens in the host's folders reach it",
        "import fcntl; fcntl.fcntl(os.open('/usr/bin', 0), 1026, 2)",
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


_DEEP: Final = "import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')"
_CLOSED: Final = """
import os
os.makedirs('a/b/c')
open('a/b/c/file', 'w').write('x')
for path in ('a/b/c', 'a/b', 'a'):
    os.chmod(path, 0)
os.chmod('.', 0)
"""


def _hard_to_remove(code: str) -> Callable[[Executor], None]:
    def check(executor: Executor) -> None:
        for _ in range(3):
            run(executor, code)
            after = run(executor, "import os\nprint(os.listdir('.'))")
            assert after.stdout == "[]\n", describe(after)

    return check


LEFT: Final = (
    Case("deep_tree", "folders too deep for a stack are removed", _hard_to_remove(_DEEP)),
    Case("closed_tree", "and folders that are closed", _hard_to_remove(_CLOSED)),
)

NETWORK: Final = (
    Case("host_loopback", "a server of the host is out of reach", _host_loopback, _ISOLATED, True),
    syscall_denied("multipath_tcp", "no rare protocols", "call(41, 198, 2, 1, 262)"),
    syscall_denied("udp_lite", "nor this one", "call(41, 198, 2, 2, 136)"),
    syscall_denied("netlink_audit", "nor the kernel's other doors", "call(41, 198, 16, 3, 9)"),
)

CASES: Final = (*MEMORY, *FORGERIES, *SLEEPERS, *LEFT, *NETWORK)
