"""From a request to what the sandbox's side executes: validated, complete, marshallable."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from agent_r1.errors import AgentR1Error
from agent_r1.sandbox import tiers
from agent_r1.sandbox.base import Limits, RunRequest
from agent_r1.sandbox.guest.root import inodes
from agent_r1.sandbox.languages import Toolchain, find_toolchain

_CORES = os.cpu_count() or 1
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NAME_BYTES = 255
_PATH_BYTES = 4000
_OWN_INODES = 8
"""The private file system's own folders, and the program's source should it want a file."""
_DAYS = 1e6
_BYTES = 1 << 50
_LARGEST = {
    "wall_seconds": _DAYS,
    "cpu_seconds": _DAYS,
    "compile_seconds": _DAYS,
    "memory_bytes": _BYTES,
    "output_bytes": _BYTES,
    "file_bytes": _BYTES,
    "processes": 4_000_000,
}
"""What the kernel's interfaces can express, with room to spare."""
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
        RequestError: a limit is out of range, a file name is none or leaves the working
            directory, or files exceed their limit.
        LanguageUnavailable: the toolchain is missing or the language is unknown.
    """
    _check_limits(request.limits)
    files = {_inside(path): content for path, content in request.files.items()}
    if request.language == "python":
        _check_files(files, request.limits.file_bytes)
        return Plan(tiers.choose(request.code), None, _job(request, files))
    if request.session is not None:
        raise RequestError(f"a session is Python only, not {request.language!r}: omit `session`")
    toolchain = find_toolchain(request.language)
    files[toolchain.source] = request.code.encode("utf-8", "surrogatepass")
    _check_files(files, request.limits.file_bytes)
    if not toolchain.compile:
        return Plan(tiers.TOOLS, None, _job(request, files, toolchain))
    first = _job(request, files, toolchain, compiling=True)
    return Plan(tiers.TOOLS, first, _job(request, {}, toolchain))


def _check_limits(limits: Limits) -> None:
    for name, most in _LARGEST.items():
        value = getattr(limits, name)
        if value is not None and not 0 < value <= most:
            raise RequestError(f"`limits.{name}` is {value}: give a number above 0, at most {most}")


def _check_files(files: dict[str, bytes], file_bytes: int) -> None:
    """Whether the files can be placed: what fails later is taken for the sandbox's fault."""
    if not files:
        return
    for path in files:
        _check_name(path)
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    both = folders & files.keys()
    if both:
        raise RequestError(f"{min(both)!r} is a file and a folder in `files`: rename one")
    whole = sum(-(-len(content) // _PAGE) * _PAGE for content in files.values())
    if whole > file_bytes:
        raise RequestError(
            f"`files` and the source take {whole} bytes in whole pages, more than the {file_bytes} "
            "of `limits.file_bytes`: raise it or send less"
        )
    most = inodes(file_bytes) - _OWN_INODES
    if len(files) + len(folders) > most:
        raise RequestError(
            f"`files` are {len(files)} in {len(folders)} folders; `limits.file_bytes` of "
            f"{file_bytes} allows {most} together: raise it or send an archive"
        )


def _check_name(path: str) -> None:
    try:
        parts = [os.fsencode(part) for part in path.split("/")]
    except UnicodeEncodeError as error:
        raise RequestError(f"{path!r} cannot be the name of a file: {error.reason}") from error
    if max(map(len, parts)) > _NAME_BYTES or sum(map(len, parts)) + len(parts) > _PATH_BYTES:
        raise RequestError(
            f"{path[:40]!r}… is too long: a name may have {_NAME_BYTES} bytes, a path {_PATH_BYTES}"
        )


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
