"""What it means to run an untrusted program: one request, one result, one protocol.

A *program* may fail in many ways and each is a :class:`RunStatus`. The *sandbox* may
fail too; that is an exception (:class:`agent_r1.errors.SandboxError`) and never a result,
because a result may be shown to a model as if its program had done it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable


class RunStatus(StrEnum):
    """How a program ended."""

    SUCCESS = "success"
    """Exit code 0."""
    ERROR = "error"
    """Exit code other than 0: an uncaught exception, ``sys.exit(1)``, a compile error."""
    TIMEOUT = "timeout"
    """The wall-clock or CPU limit passed; partial output is kept."""
    MEMORY_LIMIT = "memory_limit"
    """The program ran out of its memory limit."""
    OUTPUT_LIMIT = "output_limit"
    """The program wrote more than the output limit and was ended; the capped part is kept."""
    KILLED = "killed"
    """The program died of a signal that the limits above do not explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one run. Times in seconds, sizes in bytes."""

    wall_seconds: float = 10.0
    """From the program's start; waiting in a queue is not counted."""
    cpu_seconds: float | None = None
    """``None``: as many as the wall clock allows for every core."""
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    """Cap of stdout and of stderr, each."""
    processes: int = 64
    file_bytes: int = 64 << 20
    """All files of the working directory together."""
    compile_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One program and what it may use.

    ``files`` (relative path → content) are put into the working directory before, those
    named in ``fetch_files`` are read from it afterwards. ``seed`` makes the program's
    random state reproducible; ``None`` makes it fresh. ``session`` names a persistent
    interpreter whose state is kept between requests of the same name (Python only).
    ``last_expression`` prints the value of a final bare expression as Jupyter does.
    """

    code: str
    language: str = "python"
    stdin: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    fetch_files: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    seed: int | None = None
    session: str | None = None
    last_expression: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a program did. ``exit_code`` is negative for a signal and ``None`` on time-out."""

    status: RunStatus
    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    """Wall-clock time of the run itself, without queueing."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    compile: RunResult | None = None
    """The compile step of a compiled language. When it failed, the outer status is ERROR."""


@runtime_checkable
class Executor(Protocol):
    """Runs programs. Thread-safe; ``run`` blocks, ``arun`` does not.

    Raises :class:`agent_r1.errors.SandboxError` (or a subclass) when the sandbox, not the
    program, failed; :class:`agent_r1.errors.LanguageUnavailable` for a missing toolchain.
    """

    def run(self, request: RunRequest) -> RunResult: ...

    async def arun(self, request: RunRequest) -> RunResult: ...

    def close_session(self, session: str) -> None:
        """End a persistent interpreter. Unknown names are ignored."""

    def close(self) -> None:
        """Leave no process, mount or folder behind. Idempotent."""
