"""What takes long is seen to be under way: bars on a terminal, elsewhere a plain line now and then.

A run shows its phases in its own view (:mod:`agent_r1.monitor.console`); :func:`under_way` is for
what a command does without a run, or before it has one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

FIRST_S = 2.0
"""Seconds of silence before the first plain line; before each further one twice as many."""
LONGEST_S = 60.0

VARIABLE = "AGENT_R1_PROGRESS"
"""Environment variable that is 0 where no plain line is wanted, as what reads them is a program."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing under way. ``total`` 0: nobody knows how much there is."""

    label: str
    done: int = 0
    total: int = 0
    of_bytes: bool = False

    def count(self) -> str:
        """``3/8``, or ``3`` without a total; empty before the first."""
        done, total = (decimal(n) if self.of_bytes else f"{n:,}" for n in (self.done, self.total))
        if self.total:
            return f"{done}/{total}"
        return done if self.done else ""


class Rows(Protocol):
    """Where parts are shown, each under its label. May be called from any thread."""

    def show(self, part: Part) -> None: ...

    def hide(self, label: str) -> None: ...


class SlowLines:
    """Tells what is under way in plain lines, after silence only.

    A line comes when something has been under way for ``first_s`` seconds (:data:`FIRST_S`) and
    nothing was told for as long; each line doubles that silence, up to a minute, for all that
    follows. So a run of many short phases tells no more than one of few long ones.
    """

    def __init__(self, tell: Callable[[str], None], first_s: float | None = None) -> None:
        self._tell = tell
        self._first = self._pause = FIRST_S if first_s is None else first_s
        self._told = float("-inf")
        self._parts: dict[str, tuple[float, Part]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def show(self, part: Part) -> None:
        if os.environ.get(VARIABLE) == "0":
            return
        with self._changed:
            began, _ = self._parts.get(part.label, (time.monotonic(), part))
            self._parts[part.label] = began, part
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="under-way", daemon=True)
                self._thread.start()

    def hide(self, label: str) -> None:
        with self._changed:
            self._parts.pop(label, None)
            self._stop_if_idle()

    def clear(self) -> None:
        """Nothing is under way any more."""
        with self._changed:
            self._parts.clear()
            self._stop_if_idle()

    close = clear

    def spoke(self) -> None:
        """Something else has been told just now."""
        with self._changed:
            self._told = time.monotonic()

    def _stop_if_idle(self) -> None:
        if not self._parts:
            self._thread = None
            self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                began = min(began for began, _ in self._parts.values())
                left = max(began + self._first, self._told + self._pause) - now
                if left > 0:
                    self._changed.wait(left)
                    continue
                self._told, self._pause = now, min(2 * self._pause, LONGEST_S)
                parts = ", ".join(f"{p.label} {p.count()}".strip() for _, p in self._parts.values())
                with contextlib.suppress(OSError, ValueError):  # nobody reads: no reason to stop
                    self._tell(f"under way: {parts} ({now - began:.0f} s)")


class _Bars:
    """Bars of rich, one for each part, gone when they are hidden."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, part: Part) -> None:
        total = part.total or None
        if part.label not in self._tasks:
            self._tasks[part.label] = self._progress.add_task(part.label, total=total, count="")
        task = self._tasks[part.label]
        self._progress.update(task, completed=part.done, total=total, count=part.count())

    def hide(self, label: str) -> None:
        if label in self._tasks:
            self._progress.remove_task(self._tasks.pop(label))


class _Nowhere:
    def show(self, part: Part) -> None:
        pass

    def hide(self, label: str) -> None:
        pass


@contextlib.contextmanager
def rows(*, shown: bool = True, console: Console | None = None) -> Iterator[Rows]:
    """Where a command shows what is under way: on standard error, or nowhere."""
    console = console or Console(stderr=True)
    if not shown:
        yield _Nowhere()
    elif console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
        ends = (TextColumn("{task.fields[count]}"), TimeElapsedColumn())
        # What a command writes to standard output goes there and not through the bars.
        with Progress(
            *columns, *ends, console=console, transient=True, redirect_stdout=False
        ) as progress:
            yield _Bars(progress)
    else:
        lines = SlowLines(to_stderr)
        try:
            yield lines
        finally:
            lines.clear()


@contextlib.contextmanager
def under_way(label: str, total: int = 0, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show ``label`` until the context is left; what it gives is told how much of it is done."""
    with rows(shown=shown) as where:
        where.show(Part(label, 0, total))
        yield lambda done: where.show(Part(label, done, total))


def to_stderr(message: str) -> None:
    """Straight to the descriptor: buffered output may not be re-entered by a signal handler."""
    with contextlib.suppress(OSError):  # nobody is listening: a message is not worth the run
        os.write(2, f"{message}\n".encode())
