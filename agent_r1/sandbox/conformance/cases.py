"""What a conformance case is, and the shapes that most of them have."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from agent_r1.sandbox.base import Executor, Limits, RunRequest, RunResult, RunStatus


class Feature(StrEnum):
    """What a case needs beyond "run this program and tell me its output"."""

    SESSIONS = "sessions"
    SEEDS = "seeds"
    LAST_EXPRESSION = "last_expression"
    STATUSES = "statuses"
    """Memory limit, output limit and killed are told apart from errors."""
    LIMITS = "limits"
    """Output, process and file limits travel with the request."""
    ISOLATION = "isolation"
    """The host, other programs and later runs are out of reach."""


EVERYTHING: Final = frozenset(Feature)
SANDBOX_FUSION: Final = frozenset({Feature.ISOLATION})
"""What SandboxFusion's wire can express. Its default mode fails the isolation cases."""


PATIENCE: Final = 120.0
"""Seconds after which an answer counts as a hang; far beyond any limit, for busy machines."""


@dataclass(frozen=True, slots=True)
class Case:
    """One property. ``check`` raises :class:`AssertionError` where it does not hold."""

    name: str
    claim: str
    check: Callable[[Executor], None]
    needs: frozenset[Feature] = frozenset()
    hostile: bool = False
    slow: bool = False

    def __str__(self) -> str:
        return self.name


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class Report:
    """Outcome and detail of each case, in order."""

    results: dict[str, tuple[Outcome, str]] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Name and reason of the cases that failed."""
        return {n: text for n, (kind, text) in self.results.items() if kind is Outcome.FAILED}

    def text(self) -> str:
        """One line per case that did not pass, then the counts."""
        lines = [
            f"{kind.value}: {name}: {detail}"
            for name, (kind, detail) in self.results.items()
            if kind is not Outcome.PASSED
        ]
        kinds = [kind for kind, _ in self.results.values()]
        counts = ", ".join(f"{kinds.count(kind)} {kind.value}" for kind in Outcome)
        return "\n".join([*lines, counts])


def run(executor: Executor, code: str, **request: Any) -> RunResult:
    """Run ``code``; indentation that all its lines share is removed."""
    return executor.run(RunRequest(code=textwrap.dedent(code).strip("\n"), **request))


def describe(result: RunResult) -> str:
    """A result in short, for messages."""
    return (
        f"{result.status.value}, exit code {result.exit_code}, "
        f"stdout {result.stdout[:300]!r}, stderr {result.stderr[-300:]!r}"
    )


def prints(
    name: str,
    claim: str,
    code: str,
    expected: str,
    *,
    needs: frozenset[Feature] = frozenset(),
    **request: Any,
) -> Case:
    """The program succeeds and its standard output is ``expected``."""

    def check(executor: Executor) -> None:
        result = run(executor, code, **request)
        assert result.status is RunStatus.SUCCESS, describe(result)
        assert result.stdout == expected, describe(result)

    return Case(name, claim, check, needs)


def ends(
    name: str,
    claim: str,
    code: str,
    *statuses: RunStatus,
    wall: float = 1.0,
    limits: dict[str, Any] | None = None,
    stderr: str = "",
    needs: frozenset[Feature] = frozenset(),
    **request: Any,
) -> Case:
    """A hostile program ends with one of ``statuses``, and before patience does."""

    def check(executor: Executor) -> None:
        bounds = Limits(wall_seconds=wall, **(limits or {}))
        began = time.monotonic()
        result = run(executor, code, limits=bounds, **request)
        took = time.monotonic() - began
        assert result.status in statuses, describe(result)
        assert stderr in result.stderr, describe(result)
        assert took < PATIENCE, f"took {took:.1f} s: {describe(result)}"
        after = run(executor, "print('alive')")
        assert after.stdout == "alive\n", f"the next program failed: {describe(after)}"

    return Case(name, claim, check, needs, hostile=True)


def denied(name: str, claim: str, attempt: str, *, setup: str = "", **request: Any) -> Case:
    """The statement ``attempt`` raises, or the program dies of it; it never goes through."""
    body = textwrap.indent(textwrap.dedent(attempt).strip("\n"), "    ")
    code = f"""{textwrap.dedent(setup)}
try:
{body}
except BaseException as error:
    print("held", type(error).__name__)
else:
    print("breach")
"""
    return held(name, claim, code, **request)


def held(name: str, claim: str, code: str, **request: Any) -> Case:
    """The program prints "held" and never "breach"."""

    def check(executor: Executor) -> None:
        result = run(executor, code, **request)
        assert "breach" not in result.stdout, describe(result)
        assert "held" in result.stdout, describe(result)

    return Case(name, claim, check, frozenset({Feature.ISOLATION}), hostile=True)


SYSCALL: Final = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = x86 if platform.machine() == "x86_64" else arm
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""
"""Defines ``call``, which makes a raw system call by its x86-64 or aarch64 number."""


def syscall_denied(name: str, claim: str, attempt: str) -> Case:
    """As :func:`denied`, with ``call`` for raw system calls."""
    return denied(name, claim, attempt, setup=SYSCALL)
