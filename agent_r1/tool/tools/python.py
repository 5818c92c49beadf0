"""The Python tool: a model's program in, what it printed out."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent_r1.sandbox.base import Executor, Limits, RunRequest, RunResult, RunStatus
from agent_r1.tool.base import BaseTool, ToolResult, call_context


class PythonTool(BaseTool):
    """Runs Python programs in a sandbox.

    Args:
        executor: where programs run, shared with other tools and closed by whoever made
            it. ``None`` makes an embedded executor on the first call, which
            :meth:`close` closes.
        limits: bounds of each program.
        session: keep one interpreter per trajectory, so that a program sees the variables
            of the turns before.
        last_expression: print the value of a final bare expression, as notebooks do.

    A :class:`agent_r1.errors.SandboxError` propagates: that the sandbox is broken is
    nothing that the model did, and must not be shown to it as if it had.
    """

    name = "python"
    description = (
        "Run a complete Python program and return what it prints. Nothing is kept between calls."
    )
    parameters = {  # noqa: RUF012  # a schema, read only
        "type": "object",
        "properties": {
            "code": {"type": "string", "description": "The program, including its imports."}
        },
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        limits: Limits | None = None,
        session: bool = False,
        last_expression: bool = False,
    ) -> None:
        self._executor = executor
        self._owns_executor = False
        self._limits = limits or Limits()
        self._session = session
        self._last_expression = last_expression
        if session:
            self.description = (
                "Run Python code and return what it prints. Variables are kept between calls."
            )

    @property
    def keeps_state(self) -> bool:
        """Whether a trajectory leaves something behind that must be ended."""
        return self._session

    def execute(self, args: Mapping[str, Any]) -> ToolResult:
        if not args["code"].strip():
            return _NO_CODE
        request = self._request(args["code"])
        return render_run(self._get_executor().run(request), request.limits)

    async def aexecute(self, args: Mapping[str, Any]) -> ToolResult:
        if not args["code"].strip():
            return _NO_CODE
        request = self._request(args["code"])
        return render_run(await self._get_executor().arun(request), request.limits)

    def end_trajectory(self, trajectory_id: str) -> None:
        if self._session and self._executor is not None:
            self._executor.close_session(trajectory_id)

    def close(self) -> None:
        if self._owns_executor and self._executor is not None:
            self._executor.close()
            self._executor, self._owns_executor = None, False

    def _request(self, code: str) -> RunRequest:
        context = call_context.get()
        return RunRequest(
            code=code,
            limits=_within_deadline(self._limits, context.deadline if context else None),
            seed=context.seed if context else None,
            session=context.trajectory_id if context and self._session else None,
            last_expression=self._last_expression,
        )

    def _get_executor(self) -> Executor:
        if self._executor is None:
            from agent_r1.sandbox.embedded import EmbeddedExecutor

            self._executor, self._owns_executor = EmbeddedExecutor(), True
        return self._executor


_NO_CODE = ToolResult("Error: there is no code to run", False)
_GRACE_S = 1.0


def _within_deadline(limits: Limits, deadline: float | None) -> Limits:
    """No program outlives its trajectory by more than a second.

    The second makes sure that the trajectory's own deadline ends it, and not an
    observation about a time limit that the program was never given.
    """
    if deadline is None:
        return limits
    left = max(deadline - time.monotonic(), 0.0) + _GRACE_S
    return replace(limits, wall_seconds=left) if left < limits.wall_seconds else limits


def render_run(result: RunResult, limits: Limits) -> ToolResult:
    """What the model reads of a run.

    A success shows stdout alone (warnings on stderr would teach nothing). A failure shows
    what had been printed until then, and after it the traceback or the limit that was hit.
    """
    if result.status is RunStatus.SUCCESS:
        return ToolResult(result.stdout.rstrip("\n"), True)
    parts = [result.stdout.rstrip("\n"), _failure(result, limits)]
    return ToolResult("\n".join(part for part in parts if part), False)


def _failure(result: RunResult, limits: Limits) -> str:
    stderr = result.stderr.strip("\n")
    match result.status:
        case RunStatus.TIMEOUT:
            return f"Execution timed out after {limits.wall_seconds:g} s"
        case RunStatus.MEMORY_LIMIT:
            return f"Execution ran out of memory: the limit is {_size(limits.memory_bytes)}"
        case RunStatus.OUTPUT_LIMIT:
            return f"Execution was stopped: it wrote more than {_size(limits.output_bytes)}"
        case RunStatus.KILLED:
            return "\n".join(filter(None, [stderr, f"Execution was ended by {_signal(result)}"]))
    return stderr or f"Execution failed with exit code {result.exit_code}"


def _signal(result: RunResult) -> str:
    try:
        return signal.Signals(-(result.exit_code or 0)).name
    except ValueError:
        return "a signal"


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:g} {unit}"
    return f"{count} bytes"
