"""What a forked child does before, while and after it runs the user's program."""

from __future__ import annotations

import atexit
import builtins
import gc
import linecache
import marshal
import mmap
import os
import resource
import signal
import stat
import sys
import threading
import types
from typing import Any, NoReturn

from agent_r1.sandbox.guest import linux, tracebacks

FILE_NAME = "main.py"
_WORK = "/sandbox/work"
_ID = 1000
_state: dict[str, Any] = {}


def prepare(*, own_user: bool) -> None:
    """Once per slot: measure what a child starts with and set what never changes."""
    with open("/proc/self/statm") as file:
        fields = [int(field) for field in file.read().split()]
    page = os.sysconf("SC_PAGE_SIZE")
    _state.update(own_user=own_user, size=fields[0] * page, data=fields[5] * page)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 512),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
    ):
        resource.setrlimit(kind, (value, value))


def read_job(descriptor: int) -> dict[str, Any]:
    """The job as the host packed it."""
    size = os.fstat(descriptor).st_size
    data = os.pread(descriptor, size, 0)
    job: dict[str, Any] = marshal.loads(data)
    return job


def become(job: dict[str, Any], memory_bytes: int, started: mmap.mmap) -> NoReturn:
    """Drop every privilege, apply the limits, mark the page ``started`` and run the job."""
    os.setsid()
    _limit(job, memory_bytes)
    _drop_privileges()
    os.chdir(_WORK)
    for path, content in job["files"].items():
        _write_file(path, content)
    started[0] = 1
    started.close()
    command = job.get("command")
    if command:
        _restore_signals()
        os.execvpe(command[0], command, job["environment"])
    os._exit(run_python(job))


def _limit(job: dict[str, Any], memory_bytes: int) -> None:
    set_limit = resource.setrlimit
    data = _state["data"] + memory_bytes
    set_limit(resource.RLIMIT_DATA, (data, data))
    if not job.get("command"):
        space = _state["size"] + 2 * memory_bytes
        set_limit(resource.RLIMIT_AS, (space, space))
    count = job["processes"] + (0 if _state["own_user"] else 2)
    set_limit(resource.RLIMIT_NPROC, (count, count))
    set_limit(resource.RLIMIT_FSIZE, (job["file_bytes"], job["file_bytes"]))
    cpu = job["cpu_seconds"]
    set_limit(resource.RLIMIT_CPU, (cpu, cpu + 1))


def _drop_privileges() -> None:
    if _state["own_user"]:
        os.setresgid(_ID, _ID, _ID)
        os.setresuid(_ID, _ID, _ID)
    else:
        linux.drop_capabilities()
        linux.prctl(linux.PR_SET_DUMPABLE, 1)


def _write_file(path: str, content: bytes) -> None:
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def _restore_signals() -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


def collect(job: dict[str, Any], descriptor: int, limit: int) -> None:
    """Write ``{path: content}`` of the regular files among those asked for."""
    _limit(job | {"file_bytes": 1 << 40}, 1 << 32)
    _drop_privileges()
    found: dict[str, bytes] = {}
    for path in job["fetch"]:
        try:
            file = os.open(f"{_WORK}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(file).st_mode):
            with open(file, "rb") as stream:
                found[path] = stream.read(limit)
    data = marshal.dumps(found)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def run_python(job: dict[str, Any]) -> int:
    """Execute Python source as ``python main.py`` would, up to the exit code."""
    source: str = job["code"]
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __file__=f"{_WORK}/{FILE_NAME}", __cached__=None)
    sys.modules["__main__"] = main
    sys.argv = [FILE_NAME]
    sys.path.insert(0, _WORK)
    linecache.cache[FILE_NAME] = (lambda: source,)  # type: ignore[assignment]
    sys.excepthook = tracebacks.show
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _seed(job["seed"])
    gc.enable()
    code = _execute(source, main, job["last_expression"])
    return _finish(main, code, source)


def _seed(seed: int | None) -> None:
    """Random state that differs in every run, or that is the same for the same seed."""
    modules = sys.modules
    if seed is not None and "random" in modules:  # otherwise reseeded by its own fork hook
        modules["random"].seed(seed)
    if "numpy.random" in modules:
        modules["numpy.random"].seed(None if seed is None else seed % (1 << 32))
    if "sympy.core.random" in modules:
        modules["sympy.core.random"].seed(seed)


def _execute(source: str, main: types.ModuleType, last_expression: bool) -> int:
    try:
        if last_expression:
            _run_cell(source, main)
        else:
            exec(compile(source, FILE_NAME, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        return _exit_code(error)
    except BaseException as error:
        _report(error)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run_cell(source: str, main: types.ModuleType) -> None:
    """Run the source; print the value of a final bare expression as a notebook does."""
    import ast

    tree = ast.parse(source, FILE_NAME)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, FILE_NAME, "exec", dont_inherit=True), main.__dict__)
        return
    tree.body.pop()
    exec(compile(tree, FILE_NAME, "exec", dont_inherit=True), main.__dict__)
    expression = ast.Expression(last.value)
    value = eval(compile(expression, FILE_NAME, "eval", dont_inherit=True), main.__dict__)
    if value is not None:
        main.__dict__["_"] = value
        sys.stdout.write(repr(value) + "\n")


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    try:
        sys.stderr.write(f"{error.code}\n")
    except Exception:
        return 1
    return 1


def _report(error: BaseException) -> None:
    """Show an uncaught exception through ``sys.excepthook``, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != FILE_NAME:
        if trace.tb_frame.f_globals.get("__name__") != __name__:
            break
        trace = trace.tb_next
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit:
        return
    except BaseException as second:
        os.write(2, b"Error in sys.excepthook:\n")
        tracebacks.show(type(second), second, second.__traceback__)
        os.write(2, b"\nOriginal exception was:\n")
        tracebacks.show(type(error), error, trace)


def _finish(main: types.ModuleType, code: int, source: str) -> int:
    """What the interpreter does at its end, without taking the interpreter apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    names = main.__dict__
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and name.startswith("_") is private:
                names[name] = None
    if "__del__" in source or "open(" in source:
        gc.collect()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ValueError:  # the program closed it
            continue
        except Exception:
            code = code or 120
    return code
