"""Gymnasium environments (``pip install 'agent-r1[gymnasium]'``) as the environment of a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_r1.errors import ConfigError
from agent_r1.registry import import_path
from agent_r1.tool.base import call_context
from agent_r1.tool.foreign import spaces, toy_text
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


@dataclass(frozen=True, slots=True)
class _Words:
    """How one Gymnasium environment is put in words."""

    observe: Callable[[Any, Any], str]
    act: Callable[[str, Any], Any]
    choices: str
    """What may be written as an action."""


class GymnasiumEnv(Environment):
    """One episode of a Gymnasium environment.

    A task sets it up: its ``seed`` (else its id) is that of ``reset``, so that siblings begin
    alike, and its ``options`` go over the configured ones, so that each task may have a map of
    its own. ``generator:episodes`` makes such tasks. Rewards are the environment's own
    (``reward.name=environment``); ``terminated`` and ``truncated`` keep their meaning.

    Args:
        id: as ``gymnasium.make`` takes it: ``FrozenLake-v1``, ``module:Name-v0``.
        options: further arguments of ``gymnasium.make``.
        modules: modules to import first, because they register environments.
        actions: names of discrete actions in their order. None: those that Gymnasium documents
            for its toy-text environments, else numbers.
        instructions: what the opening says before the first observation, ``{actions}`` stands
            for what may be written. None: one sentence.
        observe: ``file.py:function`` that writes an observation, given it and the environment.
            None: words for the toy-text environments, ``render()`` with ``render_mode=ansi``
            among the options, else the numbers.
        act: ``file.py:function`` that makes an action of a text, given it and the environment;
            None from it means that the text names no action.
        action_pattern: regular expression whose group is the action within a turn; a turn
            without a match is the action as a whole.
        invalid_reward: of a turn that names no action. The state stays as it is.
        max_invalid: turns without an action after which the episode is cut short.
        noise: ``task``: siblings share their random draws too. ``trajectory``: only the start.
    """

    def __init__(
        self,
        id: str,
        shared: Any,
        options: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
        actions: Sequence[str] | None = None,
        instructions: str | None = None,
        observe: str | None = None,
        act: str | None = None,
        action_pattern: str = ACTION_PATTERN,
        invalid_reward: float = 0.0,
        max_invalid: int = 8,
        noise: str = "task",
    ) -> None:
        self._id, self._options = id, dict(options or {})
        self._words: _Words = shared
        self._instructions = instructions
        self._pattern = compiled(action_pattern)
        self._invalid_reward, self._max_invalid = invalid_reward, max_invalid
        if noise not in ("task", "trajectory"):
            raise ConfigError(f"noise={noise!r} must be 'task' or 'trajectory'")
        self._noise = noise
        self._env: Any = None
        self._task: Task | None = None
        self._info: Any = None
        self._invalid = 0
        self._total, self._steps = 0.0, 0

    @classmethod
    def open_shared(cls, **options: Any) -> _Words:
        """Make the environment once, so that what cannot work is found before the run."""
        require_package("gymnasium", "gymnasium")
        for module in options.get("modules", ()):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ConfigError(f"tool.env_kwargs.modules: {module}: {error}") from error
        env = _made(options["id"], options.get("options") or {})
        try:
            return _words(env, *(options.get(name) for name in ("actions", "observe", "act")))
        finally:
            env.close()

    def reset(self, task: Task) -> Start:
        self._task = task
        self._env = _made(self._id, task_options(task, self._options))
        observation, info = self._env.reset(seed=task_seed(task))
        if self._noise == "trajectory":
            self._reseed()
        self._info = plain(info)
        told = self._instructions
        if told is None:
            told = "Write your next action, {actions}."
        told = told.replace("{actions}", self._words.choices)
        shown = self._words.observe(observation, self._env)
        text = f"{told}\n\n{shown}" if told else shown
        opening = text if not isinstance(task.prompt, str) else f"\n{text}\n"
        return Start(opening, info={"info": self._info})

    def step(self, action: str) -> Step:
        assert self._task is not None
        chosen = self._words.act(quoted_action(action, self._pattern), self._env)
        if chosen is None:
            self._invalid += 1
            told = f"That is no action. Write {self._words.choices}."
            return Step(
                said(self._task, told),
                reward=self._invalid_reward,
                truncated=self._invalid >= self._max_invalid,
                success=(False,),
            )
        observation, reward, terminated, truncated, info = self._env.step(chosen)
        self._info = plain(info)
        self._total += float(reward)
        self._steps += 1
        return Step(
            said(self._task, self._words.observe(observation, self._env)),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
            success=(True,),
            info={"info": self._info},
        )

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    @property
    def state(self) -> Any:
        """The return so far, the steps taken, turns without an action, the last ``info``."""
        return {
            "return": self._total,
            "steps": self._steps,
            "invalid": self._invalid,
            "info": self._info,
        }

    def _reseed(self) -> None:
        import numpy as np

        context = call_context.get()
        seed = None if context is None else context.seed
        self._env.unwrapped.np_random = np.random.default_rng(seed)


def _made(id: str, options: Mapping[str, Any]) -> Any:
    import gymnasium

    try:
        return gymnasium.make(id, **options)
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        raise ConfigError(
            f"gymnasium.make({id!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())}) "
            f"failed: {error}; see tool.env_kwargs.id, options and modules"
        ) from error


def _words(env: Any, actions: Sequence[str] | None, observe: str | None, act: str | None) -> _Words:
    name = env.spec.id.rpartition("/")[2].rpartition("-v")[0] if env.spec else ""
    names = tuple(actions if actions is not None else toy_text.ACTIONS.get(name, ()))
    _check_names(env.action_space, names)
    choices = f"what {act} reads" if act else ""
    if act is None:
        spaces.check_acted(env.action_space)
        choices = spaces.offered(env.action_space, names)
    return _Words(
        observe=_observer(env, name, observe),
        act=import_path(act) if act else lambda text, it: spaces.read(it.action_space, text, names),
        choices=choices,
    )


def _check_names(space: Any, names: Sequence[str]) -> None:
    if names and (type(space).__name__ != "Discrete" or int(space.n) != len(names)):
        raise ConfigError(
            f"tool.env_kwargs.actions names {len(names)} actions, but the environment's are {space}"
        )


def _observer(env: Any, name: str, observe: str | None) -> Callable[[Any, Any], str]:
    if observe:
        found: Callable[[Any, Any], str] = import_path(observe)
        return found
    if env.render_mode == "ansi":
        return lambda observation, it: str(it.render())
    if name in toy_text.OBSERVATIONS:
        return toy_text.OBSERVATIONS[name]
    spaces.check_observed(env.observation_space)
    return lambda observation, it: spaces.written(it.observation_space, observation)
