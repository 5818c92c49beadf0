"""Environment packages of ``verifiers`` 0.4 as the environment and the tasks of a run.

In ``verifiers`` an environment owns its loop and asks a model over HTTP, so it is trained as an
agent is (:mod:`agent_r1.tool.envs.agent`): it is given the address of the policy, plays an
episode, and says what that was worth. It runs in a process of its own, whose interpreter may be
another, because its package pins versions that do not always fit beside others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from agent_r1.errors import ConfigError, DataError, ToolError
from agent_r1.tool.envs.agent import AgentCall, AgentEnv, AgentResult, OnError
from agent_r1.types import Task

_PROGRAM = Path(__file__).with_name("verifiers_worker.py")
_GIVE_UP_S = 10.0
"""Until an episode that was given up must have ended; afterwards its process is ended."""
_PAGE = 256
_ENDED = "the process of the verifiers environment ended"


class VerifiersProcess:
    """One environment of ``verifiers`` in its process. Safe to use from several threads."""

    def __init__(self, config: Mapping[str, Any], python: str | None, timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._over = False
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        words = [python or sys.executable, "-P", str(_PROGRAM), json.dumps(dict(config))]
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"tool.env_kwargs.python={python} cannot run: {error}") from error
        ready: Future[dict[str, Any]] = Future()
        self._waiting[0] = ready
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            first = ready.result(timeout_s)
        except (TimeoutError, ToolError) as error:
            self.close()
            raise ConfigError(
                f"the environment of verifiers did not start within {timeout_s:g} s "
                f"(start_timeout_s); what it printed says why: {error}"
            ) from error
        if "failed" in first:
            self.close()
            raise ConfigError(_told(str(first["failed"]), config))

    @property
    def alive(self) -> bool:
        return not self._over and self._process.poll() is None

    def ask(self, **request: Any) -> tuple[int, Future[dict[str, Any]]]:
        """Send a request; its number, and its answer when there is one."""
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._over:  # what it started may still hold its input open
                raise ToolError(_ENDED)
            self._waiting[number] = future
        self._send({**request, "id": number})
        return number, future

    def give_up(self, number: int) -> None:
        """Ask for an episode to be ended; its answer still comes."""
        self._send({"do": "cancel", "id": number})

    def close(self) -> None:
        """End the process and everything that it started."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.0 if 0 in self._waiting else _GIVE_UP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(_GIVE_UP_S)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
        except (OSError, ValueError):  # it has ended: the reader says so to all who wait
            self._end()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                with self._lock:
                    future = self._waiting.pop(message.get("id", 0), None)
                if future is not None and not future.done():
                    future.set_result(message)
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._over = True
            left, self._waiting = list(self._waiting.values()), {}
        for future in left:
            if not future.done():
                future.set_exception(ToolError(_ENDED))


class VerifiersEnv(AgentEnv):
    """Episodes of a ``verifiers`` environment, played by the policy (``reward.name=agent``).

    One role is the policy: the one without a client of its own. Its reward is the
    environment's; its named rewards and metrics become parts. An episode that ``verifiers``
    calls failed is ``tool_error`` and is not trained on. A process that dies is started again
    for the next episode.

    Args:
        taskset: id of the package, for ``config={"taskset": {"id": ...}}``.
        config: what stands in the ``[env]`` block of a configuration of ``verifiers``.
        python: the interpreter that has ``verifiers`` and the package. None: this one.
        start_timeout_s: until the environment must be ready.
        on_error: see :class:`AgentEnv`.
    """

    reuses_keys = True

    def __init__(
        self,
        *,
        taskset: str | None = None,
        config: Mapping[str, Any] | None = None,
        python: str | None = None,
        start_timeout_s: float = 300.0,
        on_error: OnError = "exclude",
    ) -> None:
        super().__init__(run=self._play, on_error=on_error)
        self._config = env_config(taskset, config)
        self._python, self._timeout_s = python, start_timeout_s
        self._starting = threading.Lock()
        self._process = VerifiersProcess(self._config, python, start_timeout_s)

    def close(self) -> None:
        self._process.close()

    async def _play(self, call: AgentCall) -> AgentResult:
        data = call.task.extra.get("verifiers")
        if not isinstance(data, Mapping):
            raise ToolError(
                f"task {call.task.id!r} is none of verifiers; take the tasks of the package with "
                "data.train_files=generator:verifiers"
            )
        process = await asyncio.to_thread(self._running)
        url = f"{call.base_url.removesuffix('/v1')}/s/{call.api_key}/v1"
        number, future = process.ask(do="run", task=dict(data), url=url, model=call.model)
        answer = asyncio.wrap_future(future)
        try:
            done = await asyncio.shield(answer)
        except asyncio.CancelledError:
            await _given_up(process, number, answer)
            raise
        if "error" in done:
            raise ToolError(f"verifiers: {done['error']}")
        return AgentResult(done["output"], float(done["reward"]), done["parts"])

    def _running(self) -> VerifiersProcess:
        with self._starting:
            if not self._process.alive:
                self._process.close()
                self._process = VerifiersProcess(self._config, self._python, self._timeout_s)
            return self._process


async def _given_up(
    process: VerifiersProcess, number: int, answer: asyncio.Future[dict[str, Any]]
) -> None:
    """Wait until an episode has really ended: its key will be another trajectory's."""
    process.give_up(number)
    try:
        with contextlib.suppress(ToolError):
            await asyncio.wait_for(answer, _GIVE_UP_S)
    except TimeoutError:
        await asyncio.to_thread(process.close)


def env_config(taskset: str | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``[env]`` block that both ways of naming a package come to."""
    made = json.loads(json.dumps(dict(config or {})))
    named = made.setdefault("taskset", {})
    if taskset is not None:
        named.setdefault("id", taskset)
    if not isinstance(named, dict) or not named.get("id"):
        raise ConfigError(
            "name the environment package of verifiers: taskset=my-package, or "
            "config={taskset: {id: my-package}}"
        )
    return made  # type: ignore[no-any-return]


def tasks(
    split: str,
    seed: int,
    taskset: str | None = None,
    config: Mapping[str, Any] | None = None,
    select: Mapping[str, Any] | None = None,
    python: str | None = None,
    start_timeout_s: float = 300.0,
) -> Iterator[Task]:
    """The tasks of a package (``data.train_files=generator:verifiers``), as it gives them.

    ``taskset``, ``config`` and ``python`` are those of :class:`VerifiersEnv`. A package knows no
    splits: ``select`` (``skip``, ``limit``, ``include``, ``shuffle`` ... of its ``SelectConfig``)
    says which tasks these are, and must be given for one of training and validation at least.
    ``seed`` is not used: which tasks there are does not depend on the run's.
    """
    made = env_config(taskset, config)
    if split != "train" and not select:
        raise DataError(
            "the tasks for validation would be those for training: choose others with "
            "data.val_generator_kwargs.select={skip: ..., limit: ...}"
        )
    process = VerifiersProcess(made, python, start_timeout_s)
    try:
        while True:
            _, future = process.ask(do="tasks", count=_PAGE, select=dict(select or {}))
            page = future.result()
            if "error" in page:
                raise DataError(f"the tasks of {made['taskset']['id']}: {page['error']}")
            for each in page["tasks"]:
                yield Task(
                    id=f"{made['taskset']['id']}-{each['key'][:16]}",
                    prompt=tuple(each["messages"]) or ({"role": "user", "content": ""},),
                    data_source=str(made["taskset"]["id"]),
                    extra={"verifiers": each["data"]},
                )
            if len(page["tasks"]) < _PAGE:
                return
    finally:
        process.close()


def _told(failure: str, config: Mapping[str, Any]) -> str:
    if failure.startswith("ModuleNotFoundError: No module named 'verifiers"):
        return (
            "tool.env=verifiers needs the package verifiers: pip install 'agent-r1[verifiers]', "
            "or name an interpreter that has it (python)"
        )
    return f"the verifiers environment {config['taskset']['id']!r} cannot be made: {failure}"
