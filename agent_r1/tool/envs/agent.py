"""Agents that own their loop: a function or a command that asks the model by itself.

``tool.env=agent`` starts it once per trajectory with an OpenAI-compatible address, waits for
it, and trains on what it asked. What it is made of does not matter.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent_r1.errors import ConfigError, ToolError
from agent_r1.registry import import_path
from agent_r1.tool.base import BaseTool, BaseToolEnv, StepResult
from agent_r1.types import Task

OnError = Literal["exclude", "score"]


@dataclass(frozen=True, slots=True)
class AgentCall:
    """What an agent gets: its task, and where the model is to be asked."""

    task: Task
    base_url: str
    """Address for an OpenAI client, ending in ``/v1``."""
    api_key: str
    """Names this trajectory: every request with it is recorded as a part of it."""
    model: str
    trajectory_id: str
    seed: int
    """Fixed by the run's seed, the task and the sibling."""
    deadline: float | None = None
    """``time.monotonic()`` at which the agent is given up."""
    tools: tuple[BaseTool, ...] = ()
    """The tools of the configuration, for agents that want them."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The task's prompt as chat messages."""
        if isinstance(self.task.prompt, str):
            return [{"role": "user", "content": self.task.prompt}]
        return [dict(message) for message in self.task.prompt]

    @property
    def text(self) -> str:
        """The task's prompt as text: that of its last message."""
        return str(self.messages[-1]["content"])

    def as_json(self) -> dict[str, Any]:
        """What a command reads on its standard input. The reference answer is not in it."""
        return {
            "id": self.task.id,
            "messages": self.messages,
            "text": self.text,
            "tools": [dict(tool) for tool in self.task.tools],
            "extra": dict(self.task.extra),
            "trajectory_id": self.trajectory_id,
            "seed": self.seed,
            "base_url": self.base_url,
            "api_key": self.api_key,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent gave back, besides what it asked the model.

    ``reward`` is None where it does not score itself; ``parts`` are further numbers.
    """

    output: str = ""
    reward: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


class AgentEnv(BaseToolEnv):
    """Says which agent is started. The rollout runs it; there is nothing to step.

    Args:
        run: ``package.module:function`` or ``file.py:function``, called with an
            :class:`AgentCall`; synchronous ones run in a thread of their own.
        command: a program instead, as a list or as one line. It reads a JSON object on its
            standard input and finds ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` in its
            environment.
        options: keyword arguments of the function.
        cwd: working directory of the command.
        on_error: what an agent that raises, or ends with another status than 0, makes of its
            trajectory. ``exclude``: it is a fault of the agent, ``tool_error``. ``score``: it
            is the model's, and the trajectory is scored as it is.

    What the agent returns: nothing, its output as text, a number that is its reward, or a
    mapping with ``output`` and ``reward`` whose other numbers become parts of the reward. A
    command prints such a mapping as its last line, or just its output.
    """

    reuses_keys = False
    """Whether a key may name a later trajectory. Only for agents that have surely ended when
    ``run`` returns or is cancelled: no late request may reach another's trajectory."""

    def __init__(
        self,
        tools: Sequence[BaseTool] = (),
        *,
        run: str | Callable[..., Any] | None = None,
        command: str | Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        cwd: str | None = None,
        on_error: OnError = "exclude",
    ) -> None:
        if (run is None) == (command is None):
            raise ConfigError(
                "tool.env=agent needs tool.env_kwargs.run=file.py:function, or "
                "tool.env_kwargs.command=[program, argument]"
            )
        if on_error not in ("exclude", "score"):
            raise ConfigError(f"on_error is 'exclude' or 'score', not {on_error!r}")
        if command is not None and options:
            raise ConfigError("a command takes no options; give them as its arguments")
        self.tools = tuple(tools)
        self.run = import_path(run) if isinstance(run, str) else run
        self.command = shlex.split(command) if isinstance(command, str) else list(command or ())
        self.options = dict(options or {})
        self.cwd = cwd
        self.on_error = on_error
        if self.run is not None:
            _check_call(self.run, self.options)

    def step(self, raw_response: str) -> StepResult:
        raise ToolError("an agent that owns its loop has no steps; tool.env=agent runs it")

    def close(self) -> None:
        for tool in self.tools:
            tool.close()


def _check_call(run: Any, options: Mapping[str, Any]) -> None:
    if not callable(run):
        raise ConfigError(f"{run!r} is no function that could be an agent")
    try:
        inspect.signature(run).bind(None, **options)
    except TypeError as error:
        raise ConfigError(
            f"the agent {getattr(run, '__name__', run)!r} must take an AgentCall and the options "
            f"{list(options)}: {error}"
        ) from error


def read_result(raw: Any) -> AgentResult:
    """What an agent returned, understood.

    Raises:
        ToolError: it is none of what :class:`AgentEnv` lists.
    """
    if isinstance(raw, AgentResult):
        return raw
    if raw is None or isinstance(raw, str):
        return AgentResult(raw or "")
    if isinstance(raw, bool | int | float):
        return AgentResult(reward=float(raw))
    if isinstance(raw, Mapping) and {"output", "reward"} & set(raw):
        numbers = {k: float(v) for k, v in raw.items() if isinstance(v, bool | int | float)}
        reward = numbers.pop("reward", None)
        if reward is None and raw.get("reward") is not None:
            raise ToolError(f"an agent's reward must be a number, not {raw['reward']!r}")
        return AgentResult(str(raw.get("output") or ""), reward, numbers)
    raise ToolError(
        f"an agent returned {type(raw).__name__} {raw!r:.80}; return nothing, text, a number, or "
        "{'output': ..., 'reward': ...}"
    )
