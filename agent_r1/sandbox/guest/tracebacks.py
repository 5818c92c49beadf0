"""Show an uncaught exception as the interpreter would, in bounded time.

The interpreter reads source lines from the file, and there is none; Python's own printer
visits every frame of a recursion a million calls deep. This one cuts such a stack in the
middle first.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from types import TracebackType

_KEPT = 60
"""Frames kept at each end of a stack."""
_never_freed: list[list[TracebackType]] = []
"""Freeing a million frames takes longer than the process has left to live."""


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Stand in for ``sys.excepthook``."""
    stream = sys.stderr
    if stream is None:
        return
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    seen: set[int] = set()
    cut: BaseException | None = error
    while cut is not None and id(cut) not in seen:
        seen.add(id(cut))
        cut.__traceback__ = shorten(trace if cut is error else cut.__traceback__)
        cut = cut.__cause__ or cut.__context__
    text = "".join(traceback.format_exception(kind, error, error.__traceback__))
    try:
        stream.write(text)
        stream.flush()
    except Exception:
        return


def shorten(trace: TracebackType | None) -> TracebackType | None:
    """At most ``2 * _KEPT`` entries of ``trace``: its first and its last."""
    entries: list[TracebackType] = []
    while trace is not None:
        entries.append(trace)
        trace = trace.tb_next
    if len(entries) > 2 * _KEPT:
        _never_freed.append(entries)
        entries[_KEPT - 1].tb_next = entries[-_KEPT]
    return entries[0] if entries else None
