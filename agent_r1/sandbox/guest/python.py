"""Run Python source as ``python main.py`` would, from an interpreter that is already warm."""

from __future__ import annotations

import _random
import atexit
import builtins
import gc
import linecache
import random
import signal
import sys
import threading
import types
from typing import Any, Final

from agent_r1.sandbox.guest import tracebacks

FILE_NAME: Final = "main.py"
_INTERRUPTED: Final = 130
_REHEARSALS: Final = 12
_REHEARSED: Final = (
    "print(1 + 1)",
    "import math\ndef f(n):\n    return [i * i for i in range(n)]\nprint(sum(f(9)), math.pi)",
    "class A:\n    pass\nprint(f'{A.__name__} {1.5:.2f}', {'a': [1, (2, 3)]}, sep=', ')",
    "def g(x):\n    raise ValueError(x)\ng(3)",
    "1 / 0",
    "x = (",
)
_NEEDS_FILE: Final = ("multiprocessing", "__file__", "concurrent", "runpy", "import main")


_places = {"work": "/sandbox/work"}


def prepare(work: str) -> None:
    """Programs live in the folder ``work``."""
    _places["work"] = work


def run(job: dict[str, Any]) -> tuple[int, bool]:
    """Execute the job's source up to its exit code; whether it ran out of memory."""
    source: str = job["code"]
    main = Main(source, job["seed"])
    if any(word in source for word in _NEEDS_FILE):
        with open(FILE_NAME, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(source)
    gc.enable()
    code = main.execute(source, job["last_expression"])
    return main.finish(code, source), main.out_of_memory


class Main:
    """The ``__main__`` module of a program."""

    def __init__(self, source: str, seed: int | None) -> None:
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.file = f"{_places['work']}/{FILE_NAME}"
        self.out_of_memory = False
        self.names.update(__builtins__=builtins, __file__=self.file, __cached__=None)
        sys.modules["__main__"] = self.module
        sys.argv = [FILE_NAME]
        sys.path.insert(0, _places["work"])
        self.show_source(source)
        sys.excepthook = tracebacks.show
        signal.signal(signal.SIGINT, signal.default_int_handler)
        reseed(seed)

    def show_source(self, source: str) -> None:
        """Have tracebacks and ``inspect`` find the source, which is in no file."""
        entry = (lambda: source,)
        linecache.cache[FILE_NAME] = linecache.cache[self.file] = entry

    def execute(self, source: str, last_expression: bool) -> int:
        """Run the source in this module's namespace, and show what it does not catch."""
        try:
            if last_expression:
                self._run_cell(source)
            else:
                exec(compile(source, FILE_NAME, "exec", dont_inherit=True), self.names)
        except SystemExit as error:
            return exit_code(error)
        except BaseException as error:
            self.out_of_memory = isinstance(error, MemoryError)
            report(error)
            return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        return 0

    def _run_cell(self, source: str) -> None:
        """Run the source; print the value of a final bare expression as a notebook does."""
        import ast  # not needed by most programs

        tree = ast.parse(source, FILE_NAME)
        shown = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
            shown = tree.body.pop()
        exec(compile(tree, FILE_NAME, "exec", dont_inherit=True), self.names)
        if not isinstance(shown, ast.Expr):
            return
        expression = ast.Expression(shown.value)
        value = eval(compile(expression, FILE_NAME, "eval", dont_inherit=True), self.names)
        if value is not None:
            self.names["_"] = value
            sys.stdout.write(repr(value) + "\n")

    def finish(self, code: int, source: str) -> int:
        """What the interpreter does at its end, without taking the interpreter apart."""
        if len(threading._active) > 1 or threading._threading_atexits:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]
        if atexit._ncallbacks():
            atexit._run_exitfuncs()
        names = self.names
        for private in (True, False):
            for name in list(names):
                if name != "__builtins__" and name.startswith("_") is private:
                    names[name] = None
        if "__del__" in source or "open(" in source:
            gc.collect()
        return flush(code)


def reseed(seed: int | None) -> None:
    """Random state that differs in every run, or that is the same for the same seed."""
    modules = sys.modules
    if seed is None:  # the C method reads the kernel's randomness and touches little else
        for generator in generators():
            _random.Random.seed(generator)
    else:
        random.seed(seed)
        if "sympy.core.random" in modules:
            modules["sympy.core.random"].seed(seed)
    if "numpy.random" in modules:
        modules["numpy.random"].seed(None if seed is None else seed % (1 << 32))


def generators() -> list[random.Random]:
    """The shared generators of the libraries that are loaded."""
    found: list[random.Random] = [random._inst]
    if "sympy.core.random" in sys.modules:
        found.append(sys.modules["sympy.core.random"].rng)
    return found


def rehearse() -> None:
    """Run programs once in the zygote: code that has run is laid out to be shared by forks.

    The interpreter writes into a function's code while it specialises it, and each page
    written after a fork is a page copied, in every run.
    """
    hook, module, arguments = sys.excepthook, sys.modules["__main__"], sys.argv
    path, handler = list(sys.path), signal.getsignal(signal.SIGINT)
    for _ in range(_REHEARSALS):
        for source in _REHEARSED:
            flush(Main(source, None).execute(source, False))
    sys.excepthook, sys.modules["__main__"], sys.argv = hook, module, arguments
    sys.path[:] = path
    signal.signal(signal.SIGINT, handler)
    linecache.clearcache()


def exit_code(error: SystemExit) -> int:
    """What ``sys.exit(value)`` means for the shell; other values are shown."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    try:
        sys.stderr.write(f"{error.code}\n")
    except Exception:
        return 1
    return 1


def report(error: BaseException) -> None:
    """Show an uncaught exception through ``sys.excepthook``, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    error.__traceback__ = trace
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit:
        return
    except BaseException as second:
        sys.stderr.write("Error in sys.excepthook:\n")
        tracebacks.show(type(second), second, second.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        tracebacks.show(type(error), error, trace)


def flush(code: int) -> int:
    """Flush the standard streams; 120 is what the interpreter exits with when that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            code = code or 120
    return code
