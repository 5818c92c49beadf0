"""A scripted executor, so that tests of the HTTP door need no isolation primitives."""

import asyncio
import threading
from collections.abc import Callable

from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus


class ScriptedExecutor:
    """Answers with what ``script`` returns; ``hold`` keeps programs running until released."""

    def __init__(self, script: Callable[[RunRequest], RunResult] | None = None, slots: int = 2):
        self.workers = slots
        self.isolation = "scripted"
        self.script = script or echo
        self.requests: list[RunRequest] = []
        self.closed_sessions: list[str] = []
        self.cancelled = threading.Event()
        self.started = threading.Semaphore(0)
        self.release = threading.Event()
        self.release.set()
        self.running = 0
        self.most_running = 0

    def hold(self) -> None:
        self.release.clear()

    def run(self, request: RunRequest) -> RunResult:
        return asyncio.run(self.arun(request))

    async def arun(self, request: RunRequest) -> RunResult:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.started.release()
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return self.script(request)

    def close_session(self, session: str) -> None:
        self.closed_sessions.append(session)

    def close(self) -> None:
        self.release.set()


def echo(request: RunRequest) -> RunResult:
    return RunResult(status=RunStatus.SUCCESS, stdout=request.code, exit_code=0, seconds=0.001)
