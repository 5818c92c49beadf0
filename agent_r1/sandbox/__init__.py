"""Run untrusted programs: embedded in this process, or over HTTP."""

from agent_r1.sandbox.base import Executor, Limits, RunRequest, RunResult, RunStatus
from agent_r1.sandbox.embedded import EmbeddedExecutor

__all__ = ["EmbeddedExecutor", "Executor", "Limits", "RunRequest", "RunResult", "RunStatus"]
