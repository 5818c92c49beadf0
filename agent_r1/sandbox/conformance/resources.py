"""Hostile programs that take too much, stay too long or die in odd ways."""

from __future__ import annotations

import time
import uuid
from typing import Final

from agent_r1.sandbox.base import Executor, Limits, RunRequest, RunStatus
from agent_r1.sandbox.conformance.cases import (
    PATIENCE,
    Case,
    Feature,
    denied,
    describe,
    ends,
    held,
    run,
)

_S = RunStatus
_ISOLATED: Final = frozenset({Feature.ISOLATION})
_STATUSES: Final = frozenset({Feature.STATUSES, Feature.LIMITS})
_ANY_END: Final = tuple(RunStatus)
_MEMORY: Final = {"memory_bytes": 256 << 20}


def _daemon_ends(executor: Executor) -> None:
    mark = uuid.uuid4().hex
    began = time.monotonic()
    first = run(
        executor,
        f"""
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                sleeper = "import time; time.sleep(1000)"
                os.execv(sys.executable, ["python", "-c", sleeper, "{mark}"])
            os._exit(0)
        os.wait()
        time.sleep(0.2)
        print("left")
        """,
    )
    assert time.monotonic() - began < PATIENCE, "a daemon held up the result"
    assert first.stdout == "left\n", describe(first)
    seen = run(
        executor,
        f"""
        import os
        for pid in os.listdir("/proc"):
            if pid.isdigit() and int(pid) != os.getpid():
                try:
                    if b"{mark}" in open(f"/proc/{{pid}}/cmdline", "rb").read():
                        print("alive")
                except OSError:
                    pass
        """,
    )
    assert "alive" not in seen.stdout, "the daemon is still there"


def _output_is_capped(executor: Executor) -> None:
    request = RunRequest(code="print('x' * 500_000)", limits=Limits(output_bytes=10_000))
    result = executor.run(request)
    assert result.status is RunStatus.OUTPUT_LIMIT, describe(result)
    assert len(result.stdout) < 11_000, len(result.stdout)
    assert "cut" in result.stdout[10_000:], result.stdout[10_000:]


TIME: Final = (
    ends(
        "processor_time",
        "processor time has a limit of its own",
        "while True: pass",
        _S.TIMEOUT,
        wall=60.0,
        limits={"cpu_seconds": 1},
        needs=_STATUSES,
    ),
    ends(
        "processor_time_ignored",
        "also for who ignores its signal",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        _S.TIMEOUT,
        wall=60.0,
        limits={"cpu_seconds": 1},
        needs=_STATUSES,
    ),
    ends("endless_loop", "an endless loop is ended", "while True: pass", _S.TIMEOUT),
    ends("sleep_forever", "a sleeper is ended", "import time; time.sleep(1e6)", _S.TIMEOUT),
    ends(
        "ignored_signals",
        "ignoring signals does not help",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        _S.TIMEOUT,
    ),
    ends(
        "stopped",
        "a program that stops itself",
        "import os; os.kill(os.getpid(), 19)",
        _S.TIMEOUT,
    ),
    ends(
        "regex_blowup",
        "a loop inside C code",
        "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
        _S.TIMEOUT,
    ),
    ends(
        "huge_power",
        "a huge number",
        "print(len(str(7 ** (10 ** 9))))",
        _S.TIMEOUT,
        _S.MEMORY_LIMIT,
        _S.ERROR,
    ),
    ends(
        "exit_handler",
        "an endless exit handler",
        "import atexit\n@atexit.register\ndef f():\n    while True: pass",
        _S.TIMEOUT,
    ),
    ends(
        "finalizer",
        "an endless finalizer",
        "class A:\n    def __del__(self):\n        while True: pass\na = A()",
        _S.TIMEOUT,
    ),
    ends(
        "thread_stays",
        "a thread that never ends",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()",
        _S.TIMEOUT,
    ),
    ends(
        "no_input",
        "reading without input ends at once",
        "input()",
        _S.ERROR,
        stderr="EOFError",
    ),
    ends(
        "grandchild_output",
        "a grandchild that holds the output",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1e6)",
        _S.SUCCESS,
        wall=8.0,
    ),
    ends(
        "lying_str",
        "an exception whose text never ends",
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        _S.TIMEOUT,
    ),
    Case("daemon", "a daemon does not outlive its run", _daemon_ends, _ISOLATED, True),
)

SPACE: Final = (
    ends(
        "memory_bomb",
        "memory is limited",
        "x = []\nwhile True: x.append(bytearray(1 << 24))",
        _S.MEMORY_LIMIT,
        wall=8.0,
        limits=_MEMORY,
        needs=_STATUSES,
    ),
    ends(
        "one_big_block", "also for one block", "x = bytearray(1 << 40)", _S.MEMORY_LIMIT, _S.ERROR
    ),
    ends(
        "shared_memory_bomb",
        "shared mappings count",
        "import mmap\nm = []\nwhile True:\n"
        "    m.append(mmap.mmap(-1, 1 << 26)); m[-1].write(bytes(1 << 26))",
        _S.MEMORY_LIMIT,
        _S.ERROR,
        _S.KILLED,
        wall=8.0,
        limits=_MEMORY,
        needs=_STATUSES,
    ),
    ends(
        "children_memory",
        "children count together",
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n"
        "        x = bytes(bytearray(100 << 20)); time.sleep(60)\ntime.sleep(60)",
        _S.MEMORY_LIMIT,
        _S.TIMEOUT,
        wall=4.0,
        limits=_MEMORY,
        needs=_STATUSES,
    ),
    ends(
        "fork_bomb",
        "processes are limited",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        _S.TIMEOUT,
        _S.ERROR,
        _S.KILLED,
        _S.MEMORY_LIMIT,
    ),
    ends(
        "thread_bomb",
        "threads are limited",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        _S.ERROR,
        _S.TIMEOUT,
        _S.MEMORY_LIMIT,
        _S.KILLED,
        wall=3.0,
    ),
    ends(
        "disk_bomb",
        "the disk is limited",
        "with open('f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
        _S.ERROR,
        _S.KILLED,
        wall=5.0,
        needs=_ISOLATED,
    ),
    ends(
        "many_files",
        "so are files",
        "i = 0\nwhile True:\n    open(str(i), 'w').close(); i += 1",
        _S.ERROR,
        _S.TIMEOUT,
        wall=5.0,
    ),
    ends(
        "sparse_file",
        "so are holes",
        "f = open('f', 'wb'); f.truncate(1 << 50)",
        _S.ERROR,
        _S.KILLED,
        needs=_ISOLATED,
    ),
    ends(
        "shared_folder_bomb",
        "/dev/shm is limited",
        "with open('/dev/shm/f', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
        _S.ERROR,
        _S.KILLED,
        _S.MEMORY_LIMIT,
        wall=5.0,
        needs=_ISOLATED,
    ),
    ends(
        "output_flood",
        "a gigabyte of output",
        "import sys\nfor _ in range(1024): sys.stdout.write('x' * (1 << 20))",
        _S.OUTPUT_LIMIT,
        wall=8.0,
        needs=_STATUSES,
    ),
    ends(
        "error_flood",
        "on either stream",
        "import sys\nfor _ in range(1024): sys.stderr.write('x' * (1 << 20))",
        _S.OUTPUT_LIMIT,
        wall=8.0,
        needs=_STATUSES,
    ),
    ends(
        "child_flood",
        "from a child too",
        "import os, sys\nif os.fork() == 0:\n    while True: os.write(1, b'x' * 65536)\nos.wait()",
        _S.OUTPUT_LIMIT,
        wall=8.0,
        needs=_STATUSES,
    ),
    ends(
        "descriptor_bomb", "descriptors are limited", "import os\nwhile True: os.dup(0)", _S.ERROR
    ),
    ends(
        "deep_recursion",
        "recursion without end",
        "def f(): f()\nf()",
        _S.ERROR,
        stderr="RecursionError",
    ),
    ends(
        "million_deep",
        "a million calls deep",
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n): return f(n + 1)\nf(0)",
        _S.ERROR,
        _S.KILLED,
        _S.MEMORY_LIMIT,
        wall=60.0,
    ),
    ends(
        "huge_message",
        "an exception with a huge text",
        "raise ValueError('x' * 100_000_000)",
        _S.OUTPUT_LIMIT,
        _S.ERROR,
        wall=8.0,
        needs=_STATUSES,
    ),
    ends(
        "nested_data",
        "structures nested too deep",
        "x = []\nfor _ in range(10 ** 6): x = [x]\nprint(repr(x))",
        _S.ERROR,
        _S.KILLED,
        wall=8.0,
    ),
    Case("output_capped", "the cap is exact and visible", _output_is_capped, _STATUSES, True),
    denied(
        "raise_limit",
        "limits cannot be raised",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
    ),
)

DEATHS: Final = (
    ends(
        "segfault",
        "a crash is a death",
        "import ctypes; ctypes.string_at(0)",
        _S.KILLED,
        needs=_STATUSES,
    ),
    ends("abort", "so is an abort", "import os; os.abort()", _S.KILLED, needs=_STATUSES),
    ends(
        "self_kill", "and suicide", "import os; os.kill(os.getpid(), 9)", _S.KILLED, needs=_STATUSES
    ),
    ends(
        "self_term",
        "by any signal",
        "import os; os.kill(os.getpid(), 15)",
        _S.KILLED,
        needs=_STATUSES,
    ),
    ends(
        "alarm",
        "by its own alarm",
        "import signal; signal.alarm(1); signal.pause()",
        _S.KILLED,
        wall=5.0,
        needs=_STATUSES,
    ),
    ends(
        "close_everything",
        "closing every descriptor",
        "import os; os.closerange(0, 512)",
        _S.SUCCESS,
        _S.ERROR,
    ),
    ends(
        "no_builtins",
        "without builtins",
        "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)\n1 / 0",
        _S.ERROR,
    ),
    ends("no_modules", "without modules", "import sys\nsys.modules.clear()\n1 / 0", _S.ERROR),
    ends(
        "broken_stdout",
        "with a broken stdout",
        "import sys\nsys.stdout = sys.stderr = 5\nprint(1)",
        _S.ERROR,
    ),
    ends(
        "broken_hook",
        "with a broken exception hook",
        "import sys\nsys.excepthook = None\n1 / 0",
        _S.ERROR,
    ),
    held(
        "exit_in_hook",
        "an exit in the hook is an exit",
        "import sys, os\nprint('held', flush=True)\nsys.excepthook = lambda *a: os._exit(3)\n1 / 0",
    ),
)

CASES: Final = (*TIME, *SPACE, *DEATHS)
