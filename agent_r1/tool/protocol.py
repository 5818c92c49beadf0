"""The environment of a trajectory: the protocol under everything that an agent can act in.

The terms are those of Gymnasium. ``reset`` opens the episode and may speak before the model
does; ``step`` takes what the model wrote in one turn to the next state and says what the model
sees of it, whether the episode is over, and, where it knows, a reward. The environment also
decides how the model's context goes on: appended to, or replaced by other messages, as a
summary or a folded history needs.

:class:`Environment` is one episode. What makes them is :class:`Environments`: for a class
derived from ``Environment`` it is made of the configured options; for a
:class:`~agent_r1.tool.base.BaseToolEnv` it wraps the environment of each trajectory.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from agent_r1.errors import EnvironmentContractError, describe
from agent_r1.tool.base import (
    BaseToolEnv,
    StepResult,
    has_trigger,
    trigger_length,
    validate_step_result,
)
from agent_r1.tool.threads import to_daemon_thread
from agent_r1.types import Message, Task

Observation: TypeAlias = str | tuple[Message, ...]
"""Text that is appended as it stands, or messages that the model's chat template writes."""


@dataclass(frozen=True, slots=True)
class Start:
    """How an episode opens."""

    messages: Observation | None = None
    """None: the task's own prompt. Text: it is added to the prompt, as a user message where
    that is a chat. Messages: the whole opening, in place of the prompt."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions to announce, as OpenAI's protocol describes them: through the chat template
    where it writes tools, else in words."""
    system: str = ""
    """Words about the environment; they open the system message, or the prompt where that is no
    chat."""
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What one action led to."""

    observation: Observation = ""
    reward: float | None = None
    """Of this action; None where the environment gives none."""
    terminated: bool = False
    """The episode reached an end of its own."""
    truncated: bool = False
    """A limit of the environment cut the episode short (outcome ``turn_limit``)."""
    success: tuple[bool, ...] = ()
    """Of each tool call of the action, for the logs."""
    context: Observation | None = None
    """None: the observation is appended. Otherwise the next turn sees this and nothing else,
    the observation not either, and a new training sample begins. Text is for models without a
    chat template."""
    info: Mapping[str, Any] = field(default_factory=dict)


class Environment(ABC):
    """One episode of a user's environment: a game, a simulated user, a page, a shell.

    A subclass implements :meth:`step`, and :meth:`reset` where it speaks first or keeps a
    state. It is made anew for every trajectory from the options of ``tool.env_kwargs``, so it
    may keep what it likes on itself. What is expensive and can be shared by all of them is made
    by :meth:`open_shared`, once per run.

    The synchronous methods run in a thread; one of them at a time for one object. Override the
    asynchronous ones instead where you await something.
    """

    stop_strings: ClassVar[tuple[str, ...]] = ()
    """Strings that end a turn, such as ``("</code>",)``."""
    control_tokens: ClassVar[bool] = False
    """Whether text of observations and contexts may contain control tokens as such; see
    ``BaseToolEnv``."""

    def reset(self, task: Task) -> Start:
        """Open the episode. The default opens with the task's prompt and announces nothing."""
        return Start()

    @abstractmethod
    def step(self, action: str) -> Step:
        """The state transition: ``action`` is what the model wrote in this turn.

        Raises:
            Exception: whatever makes the transition impossible through no fault of the model.
                The trajectory ends as ``tool_error`` and takes no part in training.
        """

    def close(self) -> None:  # noqa: B027  # optional: most hold nothing
        """Release what the episode holds. Called once, however the episode ended."""

    async def areset(self, task: Task) -> Start:
        """:meth:`reset` as the loop calls it."""
        return await to_daemon_thread(self.reset, task)

    async def astep(self, action: str) -> Step:
        """:meth:`step` as the loop calls it; cancelled when the trajectory's time is up."""
        return await to_daemon_thread(self.step, action)

    async def aclose(self) -> None:
        """:meth:`close` as the loop calls it."""
        self.close()

    @property
    def state(self) -> Any:
        """The final state, for reward functions: plain data (JSON's types) or None."""
        return None

    @classmethod
    def open_shared(cls, **options: Any) -> Any:
        """What all episodes of a run share (an index, a pool of browsers), from their options.

        It reaches constructors that have a parameter ``shared``, and is closed at the end of
        the run if it has a method ``close``.
        """
        return None

    @property
    def cuts_ids(self) -> bool:
        """Whether :meth:`kept_ids` cuts anything."""
        return False

    def kept_ids(self, tokenizer: Any, token_ids: Sequence[int]) -> int:
        """How many sampled ids belong to the turn, for triggers that no stop string can say."""
        return len(token_ids)


class Environments(ABC):
    """Makes the environment of each trajectory."""

    name: str
    stop_strings: tuple[str, ...]
    control_tokens: bool

    @abstractmethod
    def begin(self, task: Task) -> Environment:
        """The environment that one trajectory of ``task`` lives in."""

    @abstractmethod
    def close(self) -> None:
        """Release what they share."""


class PerTrajectory(Environments):
    """Makes an :class:`Environment` per trajectory from the same options.

    Options that do not fit are told at once: one environment is made and closed.
    """

    def __init__(self, made: type[Environment], options: Mapping[str, Any] | None = None) -> None:
        self.name = made.__name__
        self.stop_strings = tuple(made.stop_strings)
        self.control_tokens = made.control_tokens
        self._class = made
        self._options = dict(options or {})
        self._shared: Any = None
        if "shared" in inspect.signature(made).parameters:
            self._shared = made.open_shared(**self._options)
            self._options["shared"] = self._shared
        made(**self._options).close()

    def begin(self, task: Task) -> Environment:
        return self._class(**self._options)

    def close(self) -> None:
        close = getattr(self._shared, "close", None)
        if callable(close):
            close()
        self._shared = None


class ToolEnvironments(Environments):
    """The environments of a :class:`BaseToolEnv`."""

    def __init__(self, env: BaseToolEnv) -> None:
        self.name = type(env).__name__
        self.stop_strings = tuple(env.stop_strings)
        self.control_tokens = env.control_tokens
        self._env = env

    def begin(self, task: Task) -> Environment:
        mine = self._env.for_trajectory(task)
        return ToolEnvironment(mine, owned=mine is not self._env)

    def close(self) -> None:
        self._env.close()


class ToolEnvironment(Environment):
    """A ``BaseToolEnv`` as the environment of one trajectory."""

    def __init__(self, env: BaseToolEnv, *, owned: bool) -> None:
        self._env = env
        self._owned = owned

    def reset(self, task: Task) -> Start:
        return Start(tools=tuple(self._env.announced_tools), system=self._env.system_prompt)

    async def areset(self, task: Task) -> Start:
        return self.reset(task)

    def step(self, action: str) -> Step:
        return self._step(self._env.step(action))

    async def astep(self, action: str) -> Step:
        return self._step(await self._env.astep(action))

    def close(self) -> None:
        if self._owned:
            self._env.close()

    @property
    def cuts_ids(self) -> bool:
        return has_trigger(self._env)

    def kept_ids(self, tokenizer: Any, token_ids: Sequence[int]) -> int:
        return trigger_length(self._env, tokenizer, token_ids)

    def _step(self, result: StepResult) -> Step:
        observation, success, active = validate_step_result(self._env, result)
        return Step(observation, terminated=not active, success=tuple(success))


Env: TypeAlias = BaseToolEnv | Environments
"""What a configured environment is: both know stop strings and can be closed."""


def environments_of(env: Env) -> Environments:
    """``env`` as what makes the environment of each trajectory."""
    return env if isinstance(env, Environments) else ToolEnvironments(env)


def checked_start(env: Environment, start: object) -> Start:
    """Hold ``reset`` to its word. Raises :class:`EnvironmentContractError`."""
    if not isinstance(start, Start):
        raise EnvironmentContractError(
            f"{type(env).__name__}.reset returned {start!r:.120}; it must return a Start, for "
            "example Start() for the task's own prompt"
        )
    if start.messages is not None:
        _check_observation(env, "reset", "messages", start.messages)
    return start


def checked_step(env: Environment, step: object) -> Step:
    """Hold ``step`` to its word. Raises :class:`EnvironmentContractError`."""
    if not isinstance(step, Step):
        raise EnvironmentContractError(
            f"{type(env).__name__}.step returned {step!r:.120}; it must return a Step, for example "
            "Step('what the model sees next') or Step(terminated=True)"
        )
    _check_observation(env, "step", "observation", step.observation)
    if step.context is not None:
        _check_observation(env, "step", "context", step.context)
    return step


def checked_state(env: Environment) -> Any:
    """The final state, if it is plain data. Raises :class:`EnvironmentContractError`."""
    state = env.state
    if state is None:
        return None
    try:
        return json.loads(json.dumps(state))
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvironmentContractError(
            f"{type(env).__name__}.state is not plain data ({describe(error)}); give numbers, "
            "strings, lists and dicts, as the grader may run in another process"
        ) from error


def _check_observation(env: Environment, method: str, part: str, given: object) -> None:
    if isinstance(given, str):
        return
    messages = given if isinstance(given, list | tuple) else None
    if messages is None or not all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str)
        for message in messages
    ):
        raise EnvironmentContractError(
            f"{type(env).__name__}.{method} gave {given!r:.120} as its {part}; it must be text or "
            "a tuple of messages such as {'role': 'user', 'content': '...'}"
        )
