"""A vLLM server that the trainer starts, and that ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent_r1.errors import EngineError
from agent_r1.rollout.engines.vllm_server import VLLMServer

_GRACE_S = 10.0
_GUARD = str(Path(__file__).with_name("vllm_guard.py"))


class VLLMProcess:
    """One ``vllm serve`` in a process group of its own, on a port of the loopback device.

    ``command`` is everything but host and port. Output goes to ``log``. A second process ends
    the group when the trainer dies, however it dies (:mod:`agent_r1.rollout.engines.vllm_guard`).
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self._command = tuple(command)
        self._environ = dict(environ)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = [*self._command, "--host", "127.0.0.1", "--port", str(port)]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    words,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    env=self._environ,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(f"vLLM cannot be started: {words[0]}: {error}") from error
            self._guard = subprocess.Popen(
                [sys.executable, "-I", _GUARD, str(self._process.pid), str(_GRACE_S)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def ready(self, server: VLLMServer, timeout_s: float) -> None:
        """Wait until the server is well; :class:`EngineError` with its last words if it ends."""
        deadline = time.monotonic() + timeout_s
        while not await server.alive():
            if self.ended:
                raise EngineError(
                    f"vLLM ended while it started; the end of {self._log}:\n{self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise EngineError(
                    f"vLLM was not ready within {timeout_s:g} s (rollout.vllm.start_timeout_s); "
                    f"see {self._log}"
                )
            await asyncio.sleep(0.25)

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if "Error" in line]
        return "\n".join((wrong or lines)[-8:])

    async def stop(self) -> None:
        """End it and everything that it started."""
        if self._process is None:
            return
        if not self.ended:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_S
            while not self.ended and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End the whole process group at once."""
        self._signal(signal.SIGKILL)
        if self._guard is not None:
            self._guard.kill()  # first: the group's number may be another's afterwards
            self._guard.communicate()
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
