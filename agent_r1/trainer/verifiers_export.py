"""A run's environment and tasks as an environment package of ``verifiers`` 0.4.

A package is one module::

    from agent_r1.trainer.verifiers_export import exported

    Tasks, Episodes = exported("run.yaml")
    __all__ = ["Tasks", "Episodes"]

The tasks are those of the configuration's data, an episode is its environment in the place of the
user, and the reward is the configured one. ``prime-rl``, ``vf-eval`` and whatever else takes a
package of ``verifiers`` runs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_r1.config.load import load_config
from agent_r1.config.schema import Config
from agent_r1.data.split import look
from agent_r1.errors import ConfigError, EnvironmentContractError, RewardError
from agent_r1.rollout.limits import derive_seed
from agent_r1.rollout.opening import announced, opened_messages
from agent_r1.tool.base import CallContext, call_context
from agent_r1.tool.envs.agent import AgentEnv
from agent_r1.tool.protocol import (
    Environment,
    Observation,
    Step,
    checked_start,
    checked_state,
    checked_step,
    environments_of,
)
from agent_r1.trainer.environments import OpenedEnvironment, open_environments, scorer_of
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn


def exported(
    config: str | Path | Config, split: str = "train", overrides: tuple[str, ...] = ()
) -> tuple[type, type]:
    """The classes that a package of ``verifiers`` exports: its taskset and its environment.

    Args:
        config: a run's configuration. What it says of tasks, tools, environment, reward and
            limits of turns is used; models and training are somebody else's.
        split: ``train`` or ``val``: whose tasks they are.
        overrides: ``key=value``, as on the command line.

    Raises:
        ConfigError: the configuration is wrong, or the environment cannot be exported: an agent
            that owns its loop, or one whose turns end at stop strings, which an API that takes
            messages cannot give back.
    """
    import verifiers.v1 as vf

    loaded = config if isinstance(config, Config) else load_config(config, overrides)

    class Data(vf.TaskData):  # type: ignore[misc]
        record: dict[str, Any]

    class ExportedTask(vf.Task[Data, vf.State, vf.TaskConfig]):  # type: ignore[misc]
        pass

    class ExportedTasks(vf.Taskset[ExportedTask, vf.TasksetConfig]):  # type: ignore[misc]
        def load(self) -> Iterator[Any]:
            for task in configured_tasks(loaded, split):
                given = {"prompt": _prompt_of(task), "name": task.id, "record": asdict(task)}
                yield ExportedTask(Data.model_validate(given), self.config.task)

    class ExportedConfig(vf.EnvConfig):  # type: ignore[misc]
        agent: vf.AgentConfig = vf.AgentConfig()

    class ExportedEpisodes(vf.Env[ExportedConfig]):  # type: ignore[misc]
        async def start(self) -> None:
            self._stack = ExitStack()
            self._opened = await asyncio.to_thread(
                self._stack.enter_context, open_environments(loaded)
            )
            _check(self._opened)

        async def stop(self) -> None:
            if hasattr(self, "_stack"):
                await asyncio.to_thread(self._stack.close)

        async def run(self, task: Any, agents: Any) -> None:
            mine = _task_of(task.data.record)
            opened = {each.name: each for each in self._opened}[mine.env]
            episode = _Episode(opened, mine, task.key)
            try:
                await episode.play(task, agents.agent)
                episode.state = checked_state(episode.env)
            finally:
                await episode.env.aclose()
            await episode.record()

    return ExportedTasks, ExportedEpisodes


def configured_tasks(config: Config, split: str) -> Iterator[Task]:
    """The tasks of a configuration, each naming its environment in a run with several."""
    for tasks in look(config, split)[0].values():
        yield from tasks


class _Episode:
    """One episode in which an agent of ``verifiers`` is the model."""

    def __init__(self, opened: OpenedEnvironment, task: Task, key: str) -> None:
        self._opened = opened
        self._key = key
        self.state: Any = None
        self._task = task
        self._turns: list[Turn] = []
        self._outcome = Outcome.TURN_LIMIT
        self._started = time.perf_counter()
        self._trace: Any = None
        self.env: Environment = environments_of(opened.env).begin(task)

    async def play(self, theirs: Any, agent: Any) -> None:
        limits = self._opened.config.tool
        start = checked_start(self.env, await self._asked(self.env.areset(self._task), "reset", 0))
        system, said = _opening(self._task, announced(self._task, start))
        theirs = theirs.with_data(prompt=None, system_prompt=system or None)
        async with agent.interaction(theirs) as interaction:
            self._trace = interaction.trace
            for number in range(limits.max_turns):
                segment = await interaction.turn(said)
                if segment.terminated:  # a limit of theirs
                    return
                text = segment.last_reply
                answer = await self._asked(self.env.astep(text), "step", number)
                step = checked_step(self.env, answer)
                said = self._heard(text, step)
                if step.terminated or step.truncated:
                    if step.terminated:
                        self._outcome = Outcome.FINISHED
                    return

    async def record(self) -> None:
        """Give the episode its reward, as training here would."""
        trajectory = Trajectory(
            task=self._task,
            group_id=self._task.id,
            index=0,
            turns=tuple(self._turns),
            outcome=self._outcome,
            seconds=time.perf_counter() - self._started,
            state=self.state,
        )
        scored = await scorer_of(self._opened.config, self._opened.grader)(trajectory)
        if scored.reward is None:
            raise RewardError(scored.error or "the trajectory could not be scored")
        self._trace.record_reward("reward", scored.reward.value)
        for name, part in scored.reward.parts.items():
            self._trace.record_metric(name, part)

    def _heard(self, text: str, step: Step) -> str:
        if step.context is not None:
            raise EnvironmentContractError(
                f"{type(self.env).__name__} replaced the context; a harness of verifiers keeps "
                "its own, so this environment cannot be exported"
            )
        said = _words(step.observation)
        action = Completion(tuple(text.encode()), None, Finish.STOP)
        self._turns.append(
            Turn(
                prompt_ids=(),
                completion=action,
                text=text,
                observation_text=said,
                reward=None if step.reward is None else float(step.reward),
            )
        )
        return said

    async def _asked(self, answer: Any, method: str, number: int) -> Any:
        timeout = self._opened.config.tool.timeout_s
        deadline = None if timeout is None else time.monotonic() + timeout
        seed = derive_seed("tool" if method == "step" else method, 0, self._key, number)
        call_context.set(CallContext(self._key, number, seed, deadline))
        async with asyncio.timeout(timeout):
            return await answer


def _check(opened: tuple[OpenedEnvironment, ...]) -> None:
    for each in opened:
        if isinstance(each.env, AgentEnv):
            raise ConfigError(f"tool.env={each.config.tool.env} owns its loop; nothing to export")
        if each.env.stop_strings:
            raise ConfigError(
                f"the turns of tool.env={each.config.tool.env} end at {each.env.stop_strings}, and "
                "an API that takes messages does not give stop strings back; not exported"
            )


def _opening(task: Task, start: Any) -> tuple[str, str]:
    """System message and first user message. Raises where the opening is no such pair."""
    messages = opened_messages(task, start)
    system = "\n\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    if any(m["role"] != "user" for m in rest):
        raise EnvironmentContractError(
            f"task {task.id!r} opens with the messages of {[m['role'] for m in rest]}; only a "
            "system message and user messages can be exported"
        )
    return system, _words(tuple(rest))


def _words(observation: Observation) -> str:
    if isinstance(observation, str):
        return observation.strip("\n")
    return "\n\n".join(str(message.get("content") or "") for message in observation)


def _prompt_of(task: Task) -> str:
    """For whoever looks at the tasks; the episode opens with what the environment makes of it."""
    return _words(task.prompt)


def _task_of(record: Mapping[str, Any]) -> Task:
    prompt = record["prompt"]
    given = {**record, "prompt": prompt if isinstance(prompt, str) else tuple(prompt)}
    return Task(**{**given, "tools": tuple(record.get("tools") or ())})
