"""From a request to what the sandbox's side executes: validated, complete, marshallable."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from agent_r1.errors import AgentR1Error
from agent_r1.sandbox import tiers
from agent_r1.sandbox.base import RunRequest
from agent_r1.sandbox.languages import Toolchain, find_toolchain

_CORES = os.cpu_count() or 1
_ADDRESS_BYTES = 1 << 30
"""Addresses that an executed program may use for its binary, libraries and stacks."""


@dataclass(frozen=True, slots=True)
class Job:
    """One execution on a slot: what the program's process reads, and its wall clock."""

    payload: dict[str, Any]
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The tier to run on, an optional compile job, and the run."""

    tier: tiers.Tier
    compile: Job | None
    run: Job


class RequestError(AgentR1Error, ValueError):
    """The request asks for what no program may have: a path outside its folder, say."""


def plan(request: RunRequest) -> Plan:
    """Decide where and how ``request`` runs.

    Raises:
        RequestError: a file name leaves the working directory, or files exceed their limit.
        LanguageUnavailable: the toolchain is missing or the language is unknown.
    """
    files = {_inside(path): content for path, content in request.files.items()}
    if sum(map(len, files.values())) > request.limits.file_bytes:
        raise RequestError("`files` are larger than `limits.file_bytes`: raise it or send less")
    if request.language == "python":
        return Plan(tiers.choose(request.code), None, _job(request, files))
    if request.session is not None:
        raise RequestError(f"a session is Python only, not {request.language!r}: omit `session`")
    toolchain = find_toolchain(request.language)
    files[toolchain.source] = request.code.encode("utf-8", "surrogatepass")
    if not toolchain.compile:
        return Plan(tiers.TOOLS, None, _job(request, files, toolchain))
    first = _job(request, files, toolchain, compiling=True)
    return Plan(tiers.TOOLS, first, _job(request, {}, toolchain))


def _job(
    request: RunRequest,
    files: dict[str, bytes],
    toolchain: Toolchain | None = None,
    compiling: bool = False,
) -> Job:
    limits = request.limits
    wall = limits.compile_seconds if compiling else limits.wall_seconds
    cpu = limits.cpu_seconds
    payload: dict[str, Any] = {
        "code": request.code,
        "files": files,
        "fetch": [] if compiling else [_inside(path) for path in request.fetch_files],
        "seed": request.seed,
        "last_expression": request.last_expression,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
        "cpu_seconds": math.ceil(wall * _CORES if cpu is None or compiling else cpu) or 1,
    }
    if toolchain is not None:
        megabytes = limits.memory_bytes >> 20
        command = toolchain.compile if compiling else toolchain.run
        payload["command"] = [part.format(memory=max(16, megabytes // 2)) for part in command]
        payload["environment"] = dict(toolchain.environment)
        if not compiling and not toolchain.maps_much:
            payload["address_bytes"] = 2 * limits.memory_bytes + _ADDRESS_BYTES
        payload["code"] = ""
    return Job(payload, wall)


def _inside(path: str) -> str:
    """``path`` as a plain relative path; anything that could leave the folder is refused."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
        raise RequestError(f"{path!r} is no path inside the working directory")
    return str(pure)
