"""Runs the cells of a notebook inside the sandbox. Standard library only; imports nothing of ours.

Reads ``.notebook_cells.json``, executes each cell in the namespace of ``__main__``, and
rewrites ``.notebook_record.json`` after every cell, so that a program which is ended early
leaves the record of the cells that it finished.
"""

import ast
import asyncio
import base64
import inspect
import io
import json
import linecache
import os
import signal
import sys
import tempfile
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
TEXT_LIMIT = 1 << 20
"""Bytes of stdout and of stderr that are kept per cell."""
RICH = {
    "_repr_html_": "text/html",
    "_repr_latex_": "text/latex",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
}


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


def compile_cell(source: str, name: str) -> tuple[CodeType, CodeType | None]:
    """The statements of a cell, and its last expression apart when it has one."""
    lines = source.split("\n")
    source = "\n".join("" if line.startswith("%matplotlib") else line for line in lines)
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    tree = ast.parse(source, name)
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
    try:
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


def expire(signum: int, frame: FrameType | None) -> None:
    raise CellTimeout("the cell reached its time limit")


def display_into(displayed: list[Bundle]) -> Callable[..., None]:
    """IPython's ``display`` for one cell."""

    def display(*values: object) -> None:
        displayed.extend(mime_bundle(value) for value in values)

    return display


def save(record: list[dict[str, Any]]) -> None:
    """Replace the record in one step."""
    with open(RECORD_FILE + "~", "w", encoding="utf-8", errors="replace") as file:
        json.dump(record, file)
    os.replace(RECORD_FILE + "~", RECORD_FILE)


def main() -> None:
    with open(CELLS_FILE, encoding="utf-8") as file:
        job = json.load(file)
    os.remove(CELLS_FILE)
    os.environ.setdefault("MPLBACKEND", "agg")
    warnings.filterwarnings("ignore", message=".*non-interactive.*")
    notebook = types.ModuleType("__main__")
    sys.modules["__main__"] = notebook
    namespace = notebook.__dict__
    namespace["__builtins__"] = __builtins__
    sys.stdin = io.StringIO()
    signal.signal(signal.SIGALRM, expire)
    capture = Capture()
    record: list[dict[str, Any]] = []
    for number, source in enumerate(job["cells"], 1):
        displayed: list[Bundle] = []
        namespace["display"] = display_into(displayed)
        signal.setitimer(signal.ITIMER_REAL, job["cell_timeout"])
        error = run_cell(source, number, namespace, displayed)
        signal.setitimer(signal.ITIMER_REAL, 0)
        stdout, stderr = capture.take()
        record.append({"stdout": stdout, "stderr": stderr, "display": displayed, "error": error})
        save(record)


if __name__ == "__main__":
    main()
