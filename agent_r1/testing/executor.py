"""An executor that runs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus

Answer: TypeAlias = str | RunResult | Exception


class FakeExecutor:
    """Answers every program as told, and remembers what it was asked.

    ``answer`` is one answer for all programs, or a function of the request. A string is
    what the program prints; an exception is raised, as a broken sandbox would.
    """

    def __init__(self, answer: Answer | Callable[[RunRequest], Answer] = "") -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.requests: list[RunRequest] = []
        self.closed_sessions: list[str] = []
        self.closed = False

    def run(self, request: RunRequest) -> RunResult:
        with self._lock:
            self.requests.append(request)
        answer = self._answer(request) if callable(self._answer) else self._answer
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, RunResult):
            return answer
        return RunResult(status=RunStatus.SUCCESS, stdout=answer, exit_code=0)

    async def arun(self, request: RunRequest) -> RunResult:
        return self.run(request)

    def close_session(self, session: str) -> None:
        self.closed_sessions.append(session)

    def close(self) -> None:
        self.closed = True
