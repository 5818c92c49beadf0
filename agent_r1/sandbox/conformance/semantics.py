"""What an honest program may rely on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from agent_r1.sandbox.base import Executor, Limits, RunResult, RunStatus
from agent_r1.sandbox.conformance.cases import Case, Feature, describe, prints, run

_STATUSES: Final = frozenset({Feature.STATUSES})
_LAST: Final = frozenset({Feature.LAST_EXPRESSION})
_SEEDS: Final = frozenset({Feature.SEEDS})
_SESSIONS: Final = frozenset({Feature.SESSIONS})


def _gives(
    name: str, claim: str, code: str, test: Callable[[RunResult], bool], **request: Any
) -> Case:
    def check(executor: Executor) -> None:
        result = run(executor, code, **request)
        assert test(result), describe(result)

    return Case(name, claim, check)


def _traceback(executor: Executor) -> None:
    result = run(executor, "def f(x):\n    return 1 / x\n\nprint('before')\nf(0)")
    assert result.status is RunStatus.ERROR and result.exit_code == 1, describe(result)
    assert result.stdout == "before\n", describe(result)
    lines = result.stderr.strip().splitlines()
    assert lines[0] == "Traceback (most recent call last):", result.stderr
    assert lines[-1] == "ZeroDivisionError: division by zero", result.stderr
    places = [line for line in lines if line.startswith("  File ")]
    assert len(places) == 2, f"frames of the sandbox show: {result.stderr}"
    assert ", line 5, in <module>" in places[0] and ", line 2, in f" in places[1], result.stderr
    assert "    return 1 / x" in lines, f"no source lines: {result.stderr}"


def _seeded(executor: Executor) -> None:
    code = "import random\nprint(random.random(), hash('a'), list({'a', 'b', 'c'}))"
    first = run(executor, code, seed=7)
    for _ in range(4):
        again = run(executor, code, seed=7)
        assert again.stdout == first.stdout, f"{again.stdout!r} is not {first.stdout!r}"
    assert run(executor, code, seed=8).stdout != first.stdout


def _seeded_numpy(executor: Executor) -> None:
    code = "import numpy\nprint(numpy.random.random(3))"
    assert run(executor, code, seed=7).stdout == run(executor, code, seed=7).stdout


def _session_keeps(executor: Executor) -> None:
    try:
        run(executor, "import math\nx = 20\ndef f(): return x + 1", session="kept")
        run(executor, "x *= 2", session="kept")
        result = run(executor, "print(f(), math.floor(2.5))", session="kept")
        assert result.stdout == "41 2\n", describe(result)
        other = run(executor, "print('x' in dir())", session="other")
        assert other.stdout == "False\n", describe(other)
        assert run(executor, "print('x' in dir())").stdout == "False\n"
    finally:
        executor.close_session("kept")
        executor.close_session("other")
    again = run(executor, "print('x' in dir())", session="kept")
    executor.close_session("kept")
    assert again.stdout == "False\n", "a closed session kept its state"


def _session_survives(executor: Executor) -> None:
    try:
        run(executor, "x = 5", session="s")
        failed = run(executor, "1 / 0", session="s")
        assert failed.status is RunStatus.ERROR, describe(failed)
        late = run(executor, "while True: pass", session="s", limits=Limits(wall_seconds=0.5))
        assert late.status is RunStatus.TIMEOUT, describe(late)
        result = run(executor, "print(x)", session="s")
        assert result.stdout == "5\n", describe(result)
    finally:
        executor.close_session("s")


def _session_limits(executor: Executor) -> None:
    try:
        flood = run(
            executor, "while True: print('x' * 9999)", session="s", limits=Limits(wall_seconds=5)
        )
        assert flood.status is RunStatus.OUTPUT_LIMIT, describe(flood)
        small = Limits(memory_bytes=128 << 20)
        run(executor, "y = 1", session="m", limits=small)
        result = run(executor, "z = bytearray(1 << 30)", session="m", limits=small)
        assert result.status is RunStatus.MEMORY_LIMIT, describe(result)
    finally:
        executor.close_session("s")
        executor.close_session("m")


def _session_holds_more(executor: Executor) -> None:
    """A run that may have less than its session holds already is out of memory, and no fault."""
    large, small = Limits(memory_bytes=1 << 30), Limits(memory_bytes=128 << 20)
    try:
        held = run(executor, "x = b'1' * (400 << 20)", session="h", limits=large)
        assert held.status is RunStatus.SUCCESS, describe(held)
        result = run(executor, "import time; time.sleep(1)", session="h", limits=small)
        assert result.status is RunStatus.MEMORY_LIMIT, describe(result)
        after = run(executor, "print(1)", session="h", limits=large)
        assert after.stdout == "1\n", describe(after)
    finally:
        executor.close_session("h")


def _session_sleeps(executor: Executor) -> None:
    """Between its runs a session does nothing, whatever threads it has started."""
    code = """
    import threading, time
    count = 0
    def work():
        global count
        while True:
            count += 1
            time.sleep(0.001)
    threading.Thread(target=work, daemon=True).start()
    """
    try:
        run(executor, code, session="t")
        first = int(run(executor, "print(count)", session="t").stdout)
        time.sleep(0.4)
        second = int(run(executor, "print(count)", session="t").stdout)
        assert second - first < 100, f"it counted from {first} to {second} meanwhile"
    finally:
        executor.close_session("t")


def _session_exit(executor: Executor) -> None:
    try:
        run(executor, "x = 1", session="e")
        gone = run(executor, "import os; os._exit(4)", session="e")
        assert gone.exit_code == 4 and "lost" in gone.stderr, describe(gone)
        fresh = run(executor, "print('x' in dir())", session="e")
        assert fresh.stdout == "False\n", describe(fresh)
    finally:
        executor.close_session("e")


def _memory_error(executor: Executor) -> None:
    result = run(executor, "x = bytearray(8 << 30)", limits=Limits(memory_bytes=512 << 20))
    assert result.status is RunStatus.MEMORY_LIMIT, describe(result)
    assert "MemoryError" in result.stderr, describe(result)


def _timeout_keeps_output(executor: Executor) -> None:
    code = "import time\nprint('partial', flush=True)\ntime.sleep(60)"
    result = run(executor, code, limits=Limits(wall_seconds=0.7))
    assert result.status is RunStatus.TIMEOUT and result.exit_code is None, describe(result)
    assert result.stdout == "partial\n", describe(result)


def _files(executor: Executor) -> None:
    code = "data = open('in/a.bin', 'rb').read()\nopen('out.bin', 'wb').write(data[::-1])"
    data = bytes(range(256))
    result = run(executor, code, files={"in/a.bin": data}, fetch_files=("out.bin", "missing"))
    assert dict(result.files) == {"out.bin": data[::-1]}, describe(result)


BASICS: Final = (
    prints("print", "output comes back", "print(1 + 1)", "2\n"),
    prints("no_final_newline", "as it was written", "print('a', end='')", "a"),
    prints("unicode", "in any script", "print('π ≈ 3.14159 — 数学 🎲')", "π ≈ 3.14159 — 数学 🎲\n"),
    prints("main", "`__name__` is `__main__`", "print(__name__)", "__main__\n"),
    prints("empty_program", "an empty program succeeds", "", ""),
    prints(
        "stdin",
        "`input()` reads the given input",
        "a = input()\nb = input()\nprint(b + a)",
        "21\n",
        stdin="1\n2\n",
    ),
    prints(
        "stdin_to_the_end",
        "also all of it",
        "import sys\nprint(len(sys.stdin.read()))",
        "300000\n",
        stdin="x" * 300_000,
    ),
    prints(
        "stdin_lines",
        "line by line",
        "import sys\nprint(sum(int(x) for x in sys.stdin))",
        "6\n",
        stdin="1\n2\n3\n",
    ),
    prints(
        "import_self_file",
        "`__file__` exists when asked for",
        "import os\nprint(os.path.exists(__file__))",
        "True\n",
    ),
    prints(
        "empty_folder",
        "the working directory is empty and writable",
        "import os\nprint(os.listdir('.'))\nopen('a', 'w').close()\nprint(os.listdir('.'))",
        "[]\n['a']\n",
    ),
    prints(
        "temporary_files",
        "temporary files work",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f:\n    f.write(b'x')\nprint('ok')",
        "ok\n",
    ),
    prints(
        "future",
        "future imports work",
        "from __future__ import annotations\ndef f(x: y): return 1\nprint(f(1))",
        "1\n",
    ),
    prints(
        "dataclass",
        "dataclasses find their module",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nprint(A())",
        "A(x=1)\n",
    ),
    prints(
        "pickle_main",
        "classes of the program pickle",
        "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)",
        "A\n",
    ),
    prints(
        "inspect_source",
        "`inspect` finds the source",
        "import inspect\ndef f(): return 1\nprint(inspect.getsource(f), end='')",
        "def f(): return 1\n",
    ),
    prints(
        "unflushed_file",
        "open files are flushed at the end",
        "f = open('a', 'w')\nf.write('x')\nimport atexit\n"
        "atexit.register(lambda: (f.flush(), print(open('a').read())))",
        "x\n",
    ),
)

EXITS: Final = (
    _gives(
        "exit_zero",
        "`sys.exit()` is success",
        "import sys; sys.exit()",
        lambda r: r.status is RunStatus.SUCCESS and r.exit_code == 0,
    ),
    _gives(
        "exit_code",
        "an exit code comes back",
        "import sys; sys.exit(7)",
        lambda r: r.status is RunStatus.ERROR and r.exit_code == 7,
    ),
    _gives(
        "exit_text",
        "an exit text is shown",
        "import sys; sys.exit('bye')",
        lambda r: r.exit_code == 1 and r.stderr == "bye\n",
    ),
    _gives("raw_exit", "`os._exit` too", "import os; os._exit(9)", lambda r: r.exit_code == 9),
    _gives(
        "exit_handlers",
        "exit handlers run",
        "import atexit; atexit.register(print, 'bye')",
        lambda r: r.stdout == "bye\n" and r.exit_code == 0,
    ),
    _gives(
        "failing_handler",
        "one that fails is shown",
        "import atexit\n@atexit.register\ndef f(): 1 / 0",
        lambda r: "ZeroDivisionError" in r.stderr and r.exit_code == 0,
    ),
    _gives(
        "finalizers",
        "finalizers run",
        "class A:\n    def __del__(self): print('gone')\na = A()",
        lambda r: r.stdout == "gone\n",
    ),
    _gives(
        "syntax_error",
        "a syntax error shows its line",
        "x = 1\ny = (",
        lambda r: r.exit_code == 1 and "line 2" in r.stderr and "SyntaxError" in r.stderr,
    ),
    _gives(
        "invalid_utf8",
        "invalid UTF-8 is replaced",
        "import os; os.write(1, b'a\\xffb')",
        lambda r: r.stdout == "a\ufffdb" and r.exit_code == 0,
    ),
    _gives(
        "closed_stdout",
        "a closed stdout does not hang",
        "import sys\nprint('a')\nsys.stdout.close()",
        lambda r: r.stdout == "a\n",
    ),
    _gives(
        "streams_apart",
        "streams are kept apart",
        "import sys\nprint('o')\nprint('e', file=sys.stderr)",
        lambda r: (r.stdout, r.stderr) == ("o\n", "e\n"),
    ),
    _gives(
        "chained_exceptions",
        "chained exceptions show both",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
        lambda r: (
            "ZeroDivisionError" in r.stderr
            and "direct cause" in r.stderr
            and r.stderr.endswith("KeyError: 'k'\n")
        ),
    ),
    _gives(
        "exception_group",
        "exception groups too",
        "raise ExceptionGroup('g', [ValueError(1)])",
        lambda r: "ExceptionGroup: g" in r.stderr,
    ),
    _gives(
        "program_hook",
        "the program's own hook is used",
        "import sys\nsys.excepthook = lambda t, v, b: print('mine', v)\nraise ValueError(3)",
        lambda r: r.stdout == "mine 3\n" and r.exit_code == 1,
    ),
    Case("traceback", "a traceback is as the user wrote the program", _traceback),
    Case("memory_error", "running out of memory has its status", _memory_error, _STATUSES),
    Case("timeout_keeps_output", "a time-out keeps what was printed", _timeout_keeps_output),
    Case("files", "files go in and come out", _files),
)

CONCURRENCY: Final = (
    prints(
        "fork",
        "`fork` works",
        "import os\nif os.fork() == 0:\n    print('child', flush=True)\n    os._exit(0)\n"
        "os.wait()\nprint('parent')",
        "child\nparent\n",
    ),
    prints(
        "threads",
        "threads work",
        "import threading\nx = []\n"
        "t = [threading.Thread(target=x.append, args=(i,)) for i in range(8)]\n"
        "[a.start() for a in t]; [a.join() for a in t]\nprint(sorted(x))",
        "[0, 1, 2, 3, 4, 5, 6, 7]\n",
    ),
    prints(
        "thread_ends_program",
        "the program waits for its threads",
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
        "late\n",
    ),
    prints(
        "multiprocessing",
        "multiprocessing works",
        "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n"
        "    with m.Pool(2) as p: print(p.map(f, [1, 2, 3]))",
        "[1, 4, 9]\n",
    ),
    prints(
        "spawned",
        "also spawned",
        "import multiprocessing as m\ndef f(): print('child', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    p = m.get_context('spawn').Process(target=f); p.start(); p.join()",
        "child\n",
    ),
    prints(
        "executor",
        "futures work",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(2) as p: print(list(p.map(abs, [-1, -2])))",
        "[1, 2]\n",
    ),
    prints(
        "asyncio",
        "asyncio works",
        "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 3\n"
        "print(asyncio.run(f()))",
        "3\n",
    ),
    prints(
        "subprocess",
        "subprocesses work",
        "import subprocess, sys\n"
        "command = [sys.executable, '-c', 'print(5)']\n"
        "print(subprocess.run(command, capture_output=True, text=True).stdout, end='')",
        "5\n",
    ),
    prints(
        "own_signal",
        "a signal handler of its own works",
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print('got'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)",
        "got\n",
    ),
)

_SERVER: Final = """
import socket, threading
server = socket.create_server(("localhost", 8012))
def serve():
    peer, _ = server.accept()
    peer.sendall(peer.recv(100)[::-1])
    peer.close()
threading.Thread(target=serve).start()
with socket.create_connection(("127.0.0.1", 8012)) as client:
    client.sendall(b"olleh")
    print(client.recv(100).decode())
"""


def _server(executor: Executor) -> None:
    for _ in range(12):  # also on a port that the program before has used
        result = run(executor, _SERVER)
        assert result.stdout == "hello\n", describe(result)


LIBRARIES: Final = (
    Case("server", "a program can serve itself on 127.0.0.1", _server),
    prints(
        "numpy",
        "numpy computes",
        "import numpy as np\nprint(round(float(np.linalg.det(np.array([[1., 2.], [3., 4.]]))), 6))",
        "-2.0\n",
    ),
    prints(
        "sympy",
        "sympy solves",
        "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**2 - 5*x + 6, x))",
        "[2, 3]\n",
    ),
    prints(
        "decimals",
        "decimals are exact",
        "from decimal import Decimal\nprint(Decimal('0.1') + Decimal('0.2'))",
        "0.3\n",
    ),
    prints(
        "big_integers",
        "integers are big",
        "import math\nprint(math.factorial(30))",
        "265252859812191058636308480000000\n",
    ),
    prints(
        "bash",
        "bash runs",
        "read a; echo $((a * 2)); exit 0",
        "42\n",
        language="bash",
        stdin="21\n",
    ),
    _gives(
        "bash_fails",
        "its exit code comes back",
        "echo out; echo err >&2; exit 5",
        lambda r: (r.stdout, r.stderr, r.exit_code) == ("out\n", "err\n", 5),
        language="bash",
    ),
)

EXTENDED: Final = (
    prints(
        "last_expression",
        "the last value is shown",
        "x = 3\nx * 2",
        "6\n",
        needs=_LAST,
        last_expression=True,
    ),
    prints("last_is_none", "`None` is not", "print('a')", "a\n", needs=_LAST, last_expression=True),
    prints(
        "last_is_statement", "a statement has none", "x = 3", "", needs=_LAST, last_expression=True
    ),
    Case("seeded", "a seed makes runs equal, with string hashes", _seeded, _SEEDS),
    Case("seeded_numpy", "numpy's too", _seeded_numpy, _SEEDS),
    Case("session_keeps", "a session keeps its state to itself", _session_keeps, _SESSIONS),
    Case("session_survives", "over errors and time-outs", _session_survives, _SESSIONS),
    Case("session_limits", "within its limits", _session_limits, _SESSIONS),
    Case("session_holds_more", "within a lower limit than before", _session_holds_more, _SESSIONS),
    Case("session_sleeps", "and works only while it is asked to", _session_sleeps, _SESSIONS),
    Case("session_exit", "one that ended says so", _session_exit, _SESSIONS),
)

CASES: Final = (*BASICS, *EXITS, *CONCURRENCY, *LIBRARIES, *EXTENDED)
