"""Nothing of a session runs between two of its cells, and nothing is lost by that.

Whoever works in these programs writes down when it last did and how long it then stood still:
at least as long as the suite waited from one cell's result to the next cell, or it ran
meanwhile. A session whose processes cannot be held may be ended instead, with its state, and
must say so.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable
from typing import Final

from agent_r1.sandbox.base import Executor, RunStatus
from agent_r1.sandbox.conformance.cases import Case, Feature, describe, run

_SESSIONS: Final = frozenset({Feature.SESSIONS})
_WAIT_SECONDS: Final = 0.8
_STILL_MILLISECONDS: Final = 790

_CLOCK: Final = """
import ctypes, mmap, os, platform, signal, struct, threading, time
page = mmap.mmap(-1, 4096)
def work():
    last, most, rounds = struct.unpack_from('dQQ', page)
    now = time.monotonic()
    most = max(most, int((now - last) * 1000)) if last else 0
    page[:24] = struct.pack('dQQ', now, most, rounds + 1)
def rounds():
    return struct.unpack_from('dQQ', page)[2]
def await_work():
    before = rounds()
    while rounds() < before + 2:
        time.sleep(0.01)
"""
_ASK: Final = """
await_work()  # so that it has seen the gap
print(struct.unpack_from('dQQ', page)[1])
"""


def _stands_still(begin: str, *, may_end: bool = False) -> Callable[[Executor], None]:
    """``begin`` leaves something that calls ``work`` all the time, in one place at a time."""
    code = _CLOCK + begin + "await_work()\n"

    def check(executor: Executor) -> None:
        try:
            began = run(executor, code, session="between")
            assert may_end or began.status is RunStatus.SUCCESS, describe(began)
            for _ in range(2):
                threading.Event().wait(_WAIT_SECONDS)
                result = run(executor, _ASK, session="between")
                if may_end and result.status is RunStatus.ERROR:
                    assert "NameError" in result.stderr, describe(result)
                    return  # it was ended, and this is another one
                assert result.status is RunStatus.SUCCESS, describe(result)
                still = int(result.stdout)
                assert still >= _STILL_MILLISECONDS, f"it stood still for {still} ms of 800"
        finally:
            executor.close_session("between")

    return check


_FORKS: Final = """
if os.fork() == 0:
    while True:
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        os.waitpid(pid, 0)
"""
_DAEMON: Final = """
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in {*range(1, 65)} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        work()
"""
_TIMER: Final = """
if os.fork() == 0:
    signal.signal(signal.SIGALRM, lambda *_: work())
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    while True:
        signal.pause()
"""
_ALARM: Final = """
if os.fork() == 0:
    signal.signal(signal.SIGCONT, lambda *_: None)
    others = []
    for _ in range(2):
        others.append(os.fork())
        if others[-1] == 0:
            break
    while True:
        try: os.kill(-1, signal.SIGCONT)
        except OSError: pass
        if others[-1]:
            work()
"""
_VFORK: Final = """
if os.fork() == 0:
    clone = 56 if platform.machine() == 'x86_64' else 220
    ctypes.CDLL(None).syscall(clone, 0x4100 | 17, 0, 0, 0, 0)  # in our memory; we wait for it
    while True:
        work()
        time.sleep(0.001)
"""


def _own_stop(executor: Executor) -> None:
    """A process that the program has stopped is not continued by the next cell."""
    code = """
    child = os.fork()
    if child == 0:
        while True:
            work()
            time.sleep(0.001)
    await_work()
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    print(rounds())
    """
    ask = "time.sleep(0.2); print(rounds())"
    try:
        first = run(executor, _CLOCK + textwrap.dedent(code), session="own-stop")
        assert first.status is RunStatus.SUCCESS, describe(first)
        for _ in range(2):
            result = run(executor, ask, session="own-stop")
            assert result.stdout == first.stdout, describe(result)
        go_on = "os.kill(child, signal.SIGCONT); await_work(); print('works')"
        result = run(executor, go_on, session="own-stop")
        assert result.stdout == "works\n", describe(result)
    finally:
        executor.close_session("own-stop")


CASES: Final = (
    Case("held_forks", "who forks all the time is held", _stands_still(_FORKS), _SESSIONS, True),
    Case("held_daemon", "so is who has gone away", _stands_still(_DAEMON), _SESSIONS, True),
    Case("held_timer", "and who waits for a timer", _stands_still(_TIMER), _SESSIONS, True),
    Case("held_vfork", "and who waits in the kernel", _stands_still(_VFORK), _SESSIONS, True),
    Case(
        "held_alarm",
        "those that wake all others are held, or their session is ended",
        _stands_still(_ALARM, may_end=True),
        _SESSIONS,
        True,
    ),
    Case("own_stop", "what a program has stopped stays so", _own_stop, _SESSIONS, True),
)
