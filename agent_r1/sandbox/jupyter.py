"""``/run_jupyter``: the cells of a notebook, as one isolated Python program.

SandboxFusion starts a Jupyter kernel per request. Here the cells run one after the other in
one namespace of one ordinary program (``notebook_driver.py``), under the same isolation and
limits as any other and without a kernel, so that nothing beside the Python library is
needed. What a cell writes, shows and raises is recorded per cell.

Left out: IPython's magics (``%matplotlib`` is accepted and ignored), widgets, and state that
outlives the request. The record is written by the program's own process, so a program can
forge its *own* cells' record, as it could in a kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent_r1.sandbox import wire
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus

CELLS_FILE = ".notebook_cells.json"
RECORD_FILE = ".notebook_record.json"
RECORD_BYTES = 4 << 20
CELL_BYTES = 4 << 20
MOST_RECORD_BYTES = 32 << 20
"""Largest record that is read: the first, and the second for each cell, and never more than the
third."""
START_UP_SECONDS = 10.0
"""Added to ``total_timeout`` for the program around the cells, as SandboxFusion does."""
DEFAULT = Limits()


class RunJupyterBody(Struct, kw_only=True):
    """The body of ``POST /run_jupyter``."""

    cells: list[str]
    cell_timeout: float = 0.0
    """Seconds per cell; 0 is without limit."""
    total_timeout: float = 45.0
    memory_limit_MB: int = -1
    kernel: Literal["python3"] = "python3"
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []


class CellBody(Struct, kw_only=True):
    """What one cell wrote, showed and raised."""

    stdout: str = ""
    stderr: str = ""
    display: list[dict[str, Any]] = []
    error: list[dict[str, Any]] = []


class RunJupyterResponse(Struct, kw_only=True):
    """The answer of ``/run_jupyter``."""

    status: str
    message: str = ""
    driver: wire.CommandBody | None = None
    cells: list[CellBody] = []
    executor_pod_name: str | None = None
    files: dict[str, str] = {}


_request_decoder = msgspec.json.Decoder(RunJupyterBody, strict=False)
_record_decoder = msgspec.json.Decoder(list[CellBody])


def decode_request(data: bytes) -> RunJupyterBody:
    """Parse and validate; :class:`~agent_r1.sandbox.wire.InvalidRequest` names the field."""
    return wire.decode_body(data, _request_decoder)


def to_request(body: RunJupyterBody) -> RunRequest:
    """The program that runs these cells."""
    if not 0 <= body.cell_timeout < math.inf:
        text = f"cell_timeout is {body.cell_timeout}; give 0 for no limit, or seconds"
        raise wire.InvalidRequest(text, ("cell_timeout",))
    if not 0 < body.total_timeout < math.inf:
        text = f"total_timeout is {body.total_timeout}; it must be above 0"
        raise wire.InvalidRequest(text, ("total_timeout",))
    cells = {"cells": body.cells, "cell_timeout": body.cell_timeout, "total": body.total_timeout}
    own = (CELLS_FILE, RECORD_FILE)
    run = wire.RunCodeBody(
        code=driver_source(),
        language="python",
        run_timeout=body.total_timeout + START_UP_SECONDS,
        memory_limit_MB=body.memory_limit_MB,
        files={path: text for path, text in body.files.items() if path not in own},
        fetch_files=[*(path for path in body.fetch_files if path not in own), RECORD_FILE],
    )
    request = wire.to_request(run)
    return _with_file(request, CELLS_FILE, msgspec.json.encode(cells))


def from_result(result: RunResult, count: int) -> RunJupyterResponse:
    """The answer to ``count`` cells.

    Without a usable record (killed, out of time) it is ``Failed``, without cells; it is
    ``Failed`` too when not all of them were run.
    """
    response = wire.from_result(result)
    files = dict(response.files)
    files.pop(RECORD_FILE, None)
    cells = _record(result.files, count)
    finished = cells is not None and len(cells) == count
    complete = finished and result.status is RunStatus.SUCCESS
    return RunJupyterResponse(
        status="Success" if complete else "Failed",
        message=response.message,
        driver=response.run_result,
        cells=cells or [],
        files=files,
    )


@cache
def driver_source() -> str:
    """The program around the cells."""
    folder = resources.files("agent_r1.sandbox")
    return folder.joinpath("notebook_driver.py").read_text(encoding="utf-8")


def _record(files: Mapping[str, bytes], count: int) -> list[CellBody] | None:
    """What the driver wrote, if it is that: programs can write the file as well."""
    data = files.get(RECORD_FILE, b"")
    if len(data) > min(RECORD_BYTES + count * CELL_BYTES, MOST_RECORD_BYTES):
        return None
    try:
        return _record_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _with_file(request: RunRequest, path: str, content: bytes) -> RunRequest:
    return dataclasses.replace(request, files={**request.files, path: content})
