"""The side of the ``verifiers`` adapter that has ``verifiers``: a program of its own.

It is run by file name with any interpreter, so it imports nothing of this package. It reads
requests from its standard input and answers on its standard output, one JSON object a line; what
an environment prints goes to standard error.

    {"do": "tasks", "id": 1, "count": 100, "select": {}}   the next tasks of a selection
    {"do": "run", "id": 2, "task": {}, "url": "...", "model": "policy"}   one episode
    {"do": "cancel", "id": 2}                               give it up; it is answered all the same
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any


class Worker:
    """One environment of ``verifiers``, and the episodes that are under way in it."""

    def __init__(self, config: dict[str, Any]) -> None:
        from verifiers.v1.utils.loaders import load_environment, resolve_env_config

        prepared = _local(config)
        self._env = load_environment(resolve_env_config(prepared))
        self._task_type = type(self._env.taskset).task_type()
        self._streams: dict[str, Any] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self, requests: asyncio.StreamReader, answer: Any) -> None:
        """Answer requests until there are no more."""
        async with self._env.serving():
            answer({"ready": True})
            while line := await requests.readline():
                request = json.loads(line)
                number = request["id"]
                if request["do"] == "cancel":
                    if number in self._running:
                        self._running[number].cancel()
                    continue
                self._running[number] = asyncio.create_task(self._answered(request, answer))
            for task in list(self._running.values()):
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _answered(self, request: dict[str, Any], answer: Any) -> None:
        done: dict[str, Any] = {"error": "given up"}
        try:
            if request["do"] == "tasks":
                done = {"tasks": await asyncio.to_thread(self._tasks, request)}
            else:
                done = await self._episode(request)
        except Exception as error:
            done = {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._running.pop(request["id"], None)
            answer({"id": request["id"], **done})

    def _tasks(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        from verifiers.v1.configs.select import SelectConfig

        select = request.get("select") or {}
        name = json.dumps(select, sort_keys=True)
        if name not in self._streams:
            selected = self._env.taskset.select(SelectConfig.model_validate(select))
            self._streams[name] = iter(selected)
        return [
            _described(task) for task in itertools.islice(self._streams[name], request["count"])
        ]

    async def _episode(self, request: dict[str, Any]) -> dict[str, Any]:
        from verifiers.v1.clients import EvalClientConfig, ModelContext

        data = self._task_type.data_type().model_validate(request["task"])
        task = self._task_type(data, self._env.config.taskset.task)
        client = EvalClientConfig(base_url=request["url"], api_key_var="AGENT_R1_NO_KEY")
        context = ModelContext(request["model"], client)
        (slot,) = self._env.slots(task)
        episode = await self._env.run_slot(slot, context)
        return _judged(episode, self._policy_roles())

    def _policy_roles(self) -> set[str]:
        from verifiers.v1.configs.agent import agent_config_fields

        return {n for n, role in agent_config_fields(self._env.config).items() if not role.client}


def _local(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with roles that run here. Raises ValueError where that is unsafe or vague.

    The package's own default is a remote runtime. A program that only talks is run by the
    subprocess runtime; one that executes what the model writes needs the user's decision.
    """
    from verifiers.v1.configs.agent import agent_config_fields
    from verifiers.v1.utils.loaders import harness_class, resolve_env_config

    resolved = resolve_env_config(json.loads(json.dumps(config)))
    harnesses = resolved.agent_harnesses()
    config = json.loads(json.dumps(config))
    roles = agent_config_fields(resolved)
    asking = [name for name, role in roles.items() if role.client is None]
    if len(asking) != 1:
        raise ValueError(
            f"the roles {', '.join(asking) or 'none'} of {', '.join(roles)} would be the policy, "
            "and exactly one can be: give each of the others a client (config.<role>.client)"
        )
    for name in roles:
        given = config.setdefault(name, {})
        if "runtime" in given:
            continue
        if harness_class(harnesses[name].id).EXECUTES_CODE:
            raise ValueError(
                f"the harness {harnesses[name].id!r} of role {name!r} executes what the model "
                f"writes: choose its runtime (config.{name}.runtime.type=docker, or subprocess, "
                f"which isolates nothing), or config.{name}.harness.id='null', which only talks"
            )
        given["runtime"] = {"type": "subprocess"}
    return config


def _described(task: Any) -> dict[str, Any]:
    """A task as the other side keeps it: its data, and its prompt as messages."""
    data = task.data
    messages = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    if isinstance(data.prompt, str):
        messages.append({"role": "user", "content": data.prompt})
    else:
        for message in data.prompt or ():
            messages.append(message.model_dump(mode="json", exclude_none=True))
    return {"key": task.key, "messages": messages, "data": data.model_dump(mode="json")}


def _judged(episode: Any, roles: set[str]) -> dict[str, Any]:
    """What an episode was worth to the policy, or why it does not count."""
    traces = [t for t in episode.traces if not t.agent.name or t.agent.name in roles]
    if not episode.ok or not traces:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        said = "; ".join(f"{error.type}: {error.message}" for error in errors[-3:])
        return {"error": said or "the episode did not complete"}
    parts: dict[str, float] = {}
    for trace in traces:
        named = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
        named |= {name: value for name, value in trace.metrics.items() if value is not None}
        for name, value in named.items():
            parts[name] = parts.get(name, 0.0) + float(value) / len(traces)
    return {
        "reward": sum(trace.reward for trace in traces) / len(traces),
        "parts": parts,
        "output": traces[-1].last_reply,
        "stopped": traces[-1].stop_condition,
    }


async def _main(config: dict[str, Any]) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

    def answer(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")

    try:
        worker = Worker(config)
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        return
    requests = asyncio.StreamReader(limit=1 << 26)
    protocol = asyncio.StreamReaderProtocol(requests)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    await worker.serve(requests, answer)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
