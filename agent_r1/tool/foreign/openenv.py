"""OpenEnv servers (``pip install 'agent-r1[openenv]'``) as the environment of a run.

A server is asked over its own client, one connection an episode. It runs already, or is started
from a package: an ASGI application that ``openenv`` made (``create_app``), served by uvicorn on
the loopback device until the run ends.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx

from agent_r1.errors import ConfigError
from agent_r1.registry import import_path
from agent_r1.tool.foreign.common import (
    ACTION_PATTERN,
    compiled,
    plain,
    quoted_action,
    require_package,
    said,
    task_options,
    task_seed,
)
from agent_r1.tool.protocol import Environment, Start, Step
from agent_r1.types import Task

_POLL_S = 0.2


class OpenEnvServer:
    """Where the environment answers; a process of ours if it was started here."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url
        self._process = process

    @classmethod
    def start(cls, app: str, python: str, timeout_s: float) -> OpenEnvServer:
        """Serve ``package.module:app`` on a free port and wait until it is well."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen([*words, "--log-level", "warning"], stdin=subprocess.DEVNULL)
        server = cls(f"http://127.0.0.1:{port}", process)
        deadline = time.monotonic() + timeout_s
        while not server.is_well():
            if process.poll() is not None or time.monotonic() > deadline:
                server.close()
                raise ConfigError(
                    f"tool.env_kwargs.server={app} did not answer within {timeout_s:g} s "
                    "(start_timeout_s); what it printed says why"
                )
            time.sleep(_POLL_S)
        return server

    def is_well(self) -> bool:
        """Whether its ``/health`` answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """End the process that was started here."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class OpenEnvEnv(Environment):
    """One episode at an OpenEnv server.

    A task sets it up: its ``seed`` (else its id) and its ``options``, over the configured ones,
    go to the server's ``reset``. Rewards are the server's (``reward.name=environment``). A
    server that is lost in an episode ends it as ``tool_error``.

    Args:
        url: of a server that runs already.
        server: ``package.module:app`` of one to be started, in place of ``url``.
        python: the interpreter that has the server's package. None: this one.
        action_field: field of the action that the model's text fills. None: the text is the
            action as a JSON object.
        observation_field: field of the observation that is shown. None: all of it, as JSON.
        observe: ``file.py:function`` that writes an observation, given it as a dictionary.
        options: further arguments of the server's ``reset``.
        action_pattern: regular expression whose group is the action within a turn; a turn
            without a match is the action as a whole.
        invalid_reward: of a turn that is no JSON object, where it must be one.
        timeout_s: for one answer.
        start_timeout_s: until a server that was started must answer.
    """

    def __init__(
        self,
        shared: OpenEnvServer,
        url: str | None = None,
        server: str | None = None,
        python: str | None = None,
        action_field: str | None = None,
        observation_field: str | None = None,
        observe: str | None = None,
        options: Mapping[str, Any] | None = None,
        action_pattern: str = ACTION_PATTERN,
        invalid_reward: float = 0.0,
        timeout_s: float = 60.0,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._url = shared.url
        self._action_field, self._observation_field = action_field, observation_field
        self._observe = import_path(observe) if observe else None
        self._options = dict(options or {})
        self._pattern = compiled(action_pattern)
        self._invalid_reward, self._timeout_s = invalid_reward, timeout_s
        self._client: Any = None
        self._task: Task | None = None
        self._total, self._steps, self._last = 0.0, 0, None

    @classmethod
    def open_shared(cls, **options: Any) -> OpenEnvServer:
        """Find the server, or start it."""
        require_package("openenv.core", "openenv")
        url, app = options.get("url"), options.get("server")
        if (url is None) == (app is None):
            raise ConfigError("tool.env=openenv needs one of tool.env_kwargs.url and server")
        if app is not None:
            timeout_s = options.get("start_timeout_s", 120.0)
            return OpenEnvServer.start(app, options.get("python") or sys.executable, timeout_s)
        server = OpenEnvServer(str(url).rstrip("/"))
        if not server.is_well():
            raise ConfigError(f"no OpenEnv server answers at tool.env_kwargs.url={url}")
        return server

    async def areset(self, task: Task) -> Start:
        from openenv.core.generic_client import GenericEnvClient

        self._task = task
        self._client = GenericEnvClient(self._url, message_timeout_s=self._timeout_s)
        given = task_options(task, self._options)
        result = await self._client.reset(seed=task_seed(task), **given)
        shown = self._words(result.observation)
        return Start(shown if not isinstance(task.prompt, str) else f"\n{shown}\n")

    async def astep(self, action: str) -> Step:
        assert self._task is not None
        text = quoted_action(action, self._pattern)
        chosen = _object(text) if self._action_field is None else {self._action_field: text}
        if chosen is None:
            told = "That is no action. Write a JSON object."
            return Step(said(self._task, told), reward=self._invalid_reward, success=(False,))
        result = await self._client.step(chosen)
        self._steps += 1
        self._total += float(result.reward or 0.0)
        return Step(
            said(self._task, self._words(result.observation)),
            reward=None if result.reward is None else float(result.reward),
            terminated=bool(result.done),
            success=(True,),
        )

    def step(self, action: str) -> Step:
        raise NotImplementedError("an OpenEnv episode is asynchronous: see astep")

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def state(self) -> Any:
        """The return so far, the steps taken, the last observation."""
        return {"return": self._total, "steps": self._steps, "observation": plain(self._last)}

    def _words(self, observation: Any) -> str:
        self._last = observation
        if self._observe is not None:
            return str(self._observe(observation))
        if self._observation_field is None:
            return json.dumps(observation, ensure_ascii=False)
        if self._observation_field not in observation:
            raise ConfigError(
                f"tool.env_kwargs.observation_field={self._observation_field} is no field of the "
                f"observation; it has {', '.join(sorted(observation))}"
            )
        return str(observation[self._observation_field])


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
