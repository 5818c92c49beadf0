"""Runs the cells of a notebook inside the sandbox. Standard library only; imports nothing of ours.

Reads ``.notebook_cells.json``, executes each cell in the namespace of ``__main__``, and
rewrites ``.notebook_record.json`` after every cell, so that a program which is ended early
leaves the record of the cells that it finished.
"""

import ast
import asyncio
import base64
import contextlib
import inspect
import io
import json
import linecache
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
import types
import warnings
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, BinaryIO

Namespace = dict[str, Any]
Bundle = dict[str, str]

CELLS_FILE = ".notebook_cells.json"
RECORD_FILE = ".notebook_record.json"
SHORTEST_SECONDS = 1e-4
"""A timer of less than a microsecond would never ring."""
TEXT_LIMIT = 1 << 20
"""Bytes of stdout and of stderr that are kept per cell."""
RICH = {
    "_repr_html_": "text/html",
    "_repr_latex_": "text/latex",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
}


MAGIC = re.compile(r"^(\s*)([A-Za-z_]\w*\s*)?(?(2)=\s*)([%!])([A-Za-z_]*)(.*)$")
"""Indentation, maybe a variable, the sign, the first word, the rest."""
INSTALLER = re.compile(r"\s*(?:\S*python\S*\s+-m\s+)?(?:pip3?|conda|mamba|apt|apt-get)\s+install\b")
SHELL_MAGICS = ("pip", "conda", "ls", "cat", "mkdir", "cp", "mv", "rm", "sx", "system")
WITHOUT_EFFECT = ("matplotlib", "config", "load_ext", "reload_ext", "autoreload", "precision")


class CellTimeout(Exception):
    """The cell ran longer than ``cell_timeout``."""


def mime_bundle(value: object) -> Bundle:
    """What a front end would be sent for a value: always text, and what the value offers more."""
    bundle = {"text/plain": repr(value)}
    for method, mime in RICH.items():
        render = getattr(type(value), method, None)
        try:
            shown = render(value) if render else None
        except Exception:
            continue
        if isinstance(shown, bytes):
            shown = base64.b64encode(shown).decode("ascii")
        if isinstance(shown, str):
            bundle[mime] = shown
    return bundle


def show_figures(displayed: list[Bundle]) -> None:
    """Matplotlib's open figures, as the inline back end shows them at the end of a cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        image = io.BytesIO()
        figure.savefig(image, format="png", bbox_inches="tight")
        png = base64.b64encode(image.getvalue()).decode("ascii")
        displayed.append({"text/plain": repr(figure), "image/png": png})
    pyplot.close("all")


class UsageError(Exception):
    """A magic that is not known here, as IPython names it."""


class Clock:
    """``%time``: a context that says how long its statement took."""

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        sys.stdout.write(f"CPU times: {cpu * 1e3:.3g} ms\nWall time: {wall * 1e3:.3g} ms\n")


def shell(command: str, names: Namespace) -> list[str]:
    """``!command`` with the values of ``{name}`` put in; what it printed is shown."""
    words = INSTALLER.match(command)
    if words:
        text = f"{words[0].strip()}: nothing can be installed, as programs here have no network"
        sys.stderr.write(f"{text}; what is installed can be imported\n")
        return []
    command = re.sub(r"\{(\w+)\}", lambda m: str(names.get(m[1], m[0])), command)
    done = subprocess.run(
        ["/bin/bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    sys.stderr.write(done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace").splitlines()


def show_shell(command: str, names: Namespace) -> None:
    sys.stdout.writelines(f"{line}\n" for line in shell(command, names))


def measure(statement: str, names: Namespace) -> None:
    """``%timeit``, in fewer rounds."""
    timer = timeit.Timer(statement, globals=names)
    count, _ = timer.autorange()
    best = min(timer.repeat(3, count)) / count
    sys.stdout.write(f"{best * 1e6:.3g} µs per loop (best of 3 runs of {count} loops each)\n")


def write_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    sys.stdout.write(f"Writing {path}\n")


def statement_of(line: str) -> str | None:
    """Python for a line with a magic or a shell command in it; None for any other line."""
    found = MAGIC.match(line)
    if found is None:
        return None
    indent, target, sign, name, rest = (part or "" for part in found.groups())
    words = f"{name}{rest}"
    if sign == "!" or name in SHELL_MAGICS:
        if target:
            return f"{indent}{target}= __driver__.shell({words!r}, globals())"
        return f"{indent}__driver__.show_shell({words!r}, globals())"
    if target:
        return None
    rest = rest.strip()
    if name == "time":
        return f"{indent}with __driver__.Clock(): {rest or 'pass'}"
    if name == "timeit":
        return f"{indent}__driver__.measure({rest!r}, globals())"
    if name == "cd":
        return f"{indent}__import__('os').chdir({rest or '.'!r})"
    if name == "pwd":
        return f"{indent}__import__('os').getcwd()"
    if name in WITHOUT_EFFECT:
        return f"{indent}pass"
    message = f"the magic %{name} is not known here"
    return f"{indent}raise __driver__.UsageError({message!r})"


def cell_magic(source: str) -> str:
    """Python for a cell that begins with ``%%``; any other cell as it is. Keeps line numbers."""
    stripped = source.lstrip()
    if not stripped.startswith("%%"):
        return source
    first, _, body = stripped.partition("\n")
    above = source.count("\n", 0, len(source) - len(stripped))
    name, _, rest = first[2:].strip().partition(" ")
    if name in ("time", "capture"):
        return "\n" * (above + 1) + body
    if name in ("bash", "sh"):
        return "\n" * above + f"__driver__.show_shell({body!r}, {{}})"
    if name == "timeit":
        return "\n" * above + f"__driver__.measure({body or rest!r}, globals())"
    if name == "writefile":
        return "\n" * above + f"__driver__.write_file({rest.strip()!r}, {body!r})"
    return "\n" * above + f"raise __driver__.UsageError('the magic %%{name} is not known here')"


def parse(source: str, name: str) -> ast.Module:
    """A cell's syntax tree; lines that are no Python are looked at only where parsing fails."""
    source = cell_magic(source)
    lines = source.split("\n")
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    while True:
        try:
            return ast.parse("\n".join(lines), name)
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
            made = statement_of(lines[number]) if 0 <= number < len(lines) else None
            if made is None:
                raise
            lines[number] = made


def compile_cell(source: str, name: str) -> tuple[CodeType, CodeType | None]:
    """The statements of a cell, and its last expression apart when it has one."""
    tree = parse(source, name)
    last = None
    quiet = source.rstrip().endswith(";")
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not quiet:
        last = ast.Expression(tree.body[-1].value)
        del tree.body[-1]
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    body = compile(tree, name, "exec", flags)
    return body, None if last is None else compile(last, name, "eval", flags)


def evaluate(code: CodeType, namespace: Namespace) -> object:
    """Run compiled code, on an event loop when it awaits at top level."""
    value: object = eval(code, namespace)
    if code.co_flags & inspect.CO_COROUTINE and asyncio.iscoroutine(value):
        return asyncio.run(value)
    return value


def run_cell(
    source: str, number: int, namespace: Namespace, displayed: list[Bundle]
) -> list[dict[str, Any]]:
    """Execute one cell; the error record of what it raised, if it did."""
    timed = source.lstrip().partition("\n")[0].strip() == "%%time"
    try:
        with contextlib.ExitStack() as around:
            if timed:
                around.enter_context(Clock())
            body, last = compile_cell(source, f"<cell {number}>")
            evaluate(body, namespace)
            value = None if last is None else evaluate(last, namespace)
        if value is not None:
            namespace["_"] = value
            displayed.append(mime_bundle(value))
        show_figures(displayed)
    except SystemExit as stop:
        return [] if stop.code in (None, 0) else [error_record(stop)]
    except BaseException as error:
        return [error_record(error)]
    return []


def error_record(error: BaseException) -> dict[str, Any]:
    """Jupyter's three fields. The frames of this file are left out of the traceback."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals is globals():
        frames = frames.tb_next
    text = traceback.format_exception(type(error), error, frames)
    try:
        said = str(error)
    except Exception:
        said = "<unprintable error>"
    return {"ename": type(error).__name__, "evalue": said, "traceback": "".join(text).splitlines()}


def _temporary() -> BinaryIO:
    """A nameless file, open for as long as the notebook runs."""
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return os.fdopen(descriptor, "w+b")


class Capture:
    """Descriptors 1 and 2 in files, so that child processes and C code are recorded, too."""

    def __init__(self) -> None:
        self.files = {descriptor: _temporary() for descriptor in (1, 2)}
        for descriptor, file in self.files.items():
            os.dup2(file.fileno(), descriptor)

    def take(self) -> list[str]:
        """What was written since the last call."""
        texts = []
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                continue
        for file in self.files.values():
            file.seek(0)
            texts.append(file.read(TEXT_LIMIT).decode("utf-8", "replace"))
            file.seek(0)
            file.truncate()
        return texts


def run_timed(
    seconds: float, source: str, number: int, namespace: Namespace, displayed: list[Bundle]
) -> list[dict[str, Any]]:
    """Run a cell under its time limit; the alarm may also ring just before or after the cell."""
    try:
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, max(seconds, SHORTEST_SECONDS))
        error = run_cell(source, number, namespace, displayed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return error
    except CellTimeout as late:
        return [error_record(late)]


def expire(signum: int, frame: FrameType | None) -> None:
    raise CellTimeout("the cell reached its time limit")


def display_into(displayed: list[Bundle]) -> Callable[..., None]:
    """IPython's ``display`` for one cell."""

    def display(*values: object) -> None:
        displayed.extend(mime_bundle(value) for value in values)

    return display


def save(record: list[dict[str, Any]], path: str) -> None:
    """Replace the record in one step."""
    with open(path + "~", "w", encoding="utf-8", errors="replace") as file:
        json.dump(record, file)
    os.replace(path + "~", path)


def main() -> None:
    with open(CELLS_FILE, encoding="utf-8") as file:
        job = json.load(file)
    os.remove(CELLS_FILE)
    place = os.path.abspath(RECORD_FILE)  # cells may go to another folder
    os.environ.setdefault("MPLBACKEND", "agg")
    warnings.filterwarnings("ignore", message=".*non-interactive.*")
    driver, notebook = sys.modules["__main__"], types.ModuleType("__main__")
    sys.modules["__main__"] = notebook
    namespace = notebook.__dict__
    namespace["__builtins__"] = __builtins__
    namespace["__driver__"] = driver
    sys.stdin = io.StringIO()
    signal.signal(signal.SIGALRM, expire)
    capture = Capture()
    record: list[dict[str, Any]] = []
    save(record, place)
    for number, source in enumerate(job["cells"], 1):
        displayed: list[Bundle] = []
        namespace["display"] = display_into(displayed)
        error = run_timed(job["cell_timeout"], source, number, namespace, displayed)
        stdout, stderr = capture.take()
        record.append({"stdout": stdout, "stderr": stderr, "display": displayed, "error": error})
        save(record, place)


if __name__ == "__main__":
    main()
