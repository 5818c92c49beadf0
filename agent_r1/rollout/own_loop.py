"""Trajectories of agents that own their loop: start, wait, record."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import time
from dataclasses import replace
from typing import Any

from agent_r1.errors import AgentR1Error, ToolError, describe
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.endpoint.server import Endpoint
from agent_r1.rollout.endpoint.session import Session
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.limits import LoopLimits, Sampling, derive_seed
from agent_r1.rollout.stream import Watcher
from agent_r1.tool.base import CallContext, call_context
from agent_r1.tool.envs.agent import AgentCall, AgentEnv, AgentResult, read_result
from agent_r1.tool.threads import to_daemon_thread
from agent_r1.types import Outcome, Task, Trajectory

_GRACE_S = 2.0
"""Between the signal that asks a command to end and the one that ends it."""


class OwnLoop:
    """Runs agents against one engine, as :class:`AgentLoop` runs environments.

    Every trajectory gets a key of its own at one endpoint in this event loop. Its sequences
    are not announced to the engine, as nobody knows when an agent asks next; batches, and so
    the last bits of the numbers, then depend on timing.

    A trajectory always comes back. It is over when the agent returns (``finished``) or its
    time is up (``timeout``). If a limit was used up before, that is the outcome, whatever the
    agent made of the refusal. An agent that fails is ``tool_error`` unless ``on_error`` says
    that it counts, and so is one that never asked.
    """

    def __init__(
        self, engine: Engine, codec: Codec, env: AgentEnv, limits: LoopLimits, model: str = "policy"
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._renderer = ChatRenderer(codec)
        self._env = env
        self._limits = limits
        self._model = model
        self._endpoint = Endpoint(model)
        self._free_keys: list[str] = []

    async def run(
        self,
        task: Task,
        group_id: str,
        index: int,
        sampling: Sampling,
        watch: Watcher | None = None,
    ) -> Trajectory:
        """One trajectory. ``watch`` sees its answers when the agent is done."""
        started = time.perf_counter()
        name = f"{group_id}/{index}"
        self._engine.release(name)  # it was announced with its group, and asks under other names
        await self._endpoint.start()
        session = Session(name, self._engine, self._codec, self._renderer, self._limits, sampling)
        key = self._endpoint.open(session, self._free_keys.pop() if self._free_keys else None)
        result, error = AgentResult(), None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                result = read_result(await self._agent(self._call(task, key, name, sampling)))
            outcome = Outcome.FINISHED
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        except Exception as failure:  # whatever a foreign agent raises is that agent's outcome
            outcome, error = self._failed(failure)
        finally:
            self._endpoint.close_session(key)
            if self._env.reuses_keys:
                self._free_keys.append(key)
        outcome, error = _judged(session, outcome, error)
        trajectory = Trajectory(
            task=task,
            group_id=group_id,
            index=index,
            turns=session.turns(),
            outcome=outcome,
            error=error,
            seconds=time.perf_counter() - started,
        )
        if watch is not None:
            for turn in trajectory.turns:
                watch.on_text(turn.text)
                watch.on_written(turn)
                watch.on_observed(turn)
        return _with_result(trajectory, result)

    async def close(self) -> None:
        await self._endpoint.stop()

    def _failed(self, failure: Exception) -> tuple[Outcome, str | None]:
        if self._env.on_error == "score" and not isinstance(failure, ToolError):
            return Outcome.FINISHED, None
        return Outcome.TOOL_ERROR, f"the agent failed: {describe(failure)}"

    def _call(self, task: Task, key: str, name: str, sampling: Sampling) -> AgentCall:
        timeout = self._limits.timeout_s
        seed = derive_seed("agent", sampling.seed, name)
        deadline = None if timeout is None else time.monotonic() + timeout
        call_context.set(CallContext(name, 0, seed, deadline))
        return AgentCall(
            task=task,
            base_url=f"{self._endpoint.url}/v1",
            api_key=key,
            model=self._model,
            trajectory_id=name,
            seed=seed,
            deadline=deadline,
            tools=self._env.tools,
        )

    async def _agent(self, call: AgentCall) -> Any:
        run = self._env.run
        if run is None:
            return await _command(self._env, call)
        if inspect.iscoroutinefunction(run):
            return await run(call, **self._env.options)
        returned = await to_daemon_thread(lambda: run(call, **self._env.options))
        return await returned if inspect.isawaitable(returned) else returned


def _judged(session: Session, outcome: Outcome, error: str | None) -> tuple[Outcome, str | None]:
    """What the session knows better than the agent: failures of the engine, and limits."""
    if session.failure is not None:
        return Outcome.ENGINE_ERROR, describe(session.failure)
    if session.over is not None and session.over.outcome is not None:
        return session.over.outcome, None
    if outcome is Outcome.FINISHED and not session.answers:
        return Outcome.TOOL_ERROR, (
            "the agent never asked the model: it must use the base_url and api_key that it is given"
        )
    return outcome, error


def _with_result(trajectory: Trajectory, result: AgentResult) -> Trajectory:
    extra = {**trajectory.task.extra, "agent_output": result.output}
    if result.reward is not None:
        extra |= {"agent_reward": result.reward, "agent_parts": dict(result.parts)}
    return replace(trajectory, task=replace(trajectory.task, extra=extra))


class _CommandFailed(AgentR1Error):
    """The command ended with a status that is not 0."""


async def _command(env: AgentEnv, call: AgentCall) -> Any:
    """Run the command in a process group of its own, which ends with the trajectory."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": call.base_url,
        "OPENAI_API_KEY": call.api_key,
        "OPENAI_MODEL": call.model,
    }
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *env.command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            cwd=env.cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"the agent {env.command[0]!r} cannot be started: {error}") from error
    try:
        given = json.dumps(call.as_json(), default=str).encode()
        stdout, stderr = await process.communicate(given)
    finally:
        await _end(process)
    if process.returncode:
        told = stderr.decode(errors="replace")[-1000:].strip()
        raise _CommandFailed(f"{env.command[0]} ended with status {process.returncode}: {told}")
    return _printed(stdout.decode(errors="replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what is left of the process group: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), _GRACE_S)


def _printed(text: str) -> Any:
    """The mapping that the last line is, or the whole output as text."""
    *_, last = text.rstrip().splitlines() or [""]
    with contextlib.suppress(ValueError):
        found = json.loads(last)
        if isinstance(found, dict) and {"output", "reward"} & set(found):
            return found
    return text.strip()
