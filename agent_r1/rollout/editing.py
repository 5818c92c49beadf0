"""Policies that keep a long episode inside of its context window, for any environment.

A policy sees the episode as an opening and units, each an action of the model and the
observation behind it, as the very ids that were sampled and appended. It leaves units out,
shortens old observations, or asks the model for a summary, which is an action like any other
and is trained. What it changes begins a new training sample
(:meth:`agent_r1.types.Trajectory.samples`); credit goes on across it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent_r1.config.task import ContextConfig
from agent_r1.errors import ConfigError
from agent_r1.rollout.context import ContextWriter, Tools
from agent_r1.tool.protocol import Environments, Observation
from agent_r1.tool.text import truncate
from agent_r1.types import Turn


@dataclass(slots=True)
class Unit:
    """One action and what was observed after it."""

    turn: Turn
    observation: Observation
    shortened: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        return self.turn.completion.token_ids + self.turn.observation_ids


@dataclass(slots=True)
class History:
    """The context of the next turn, in its parts."""

    opening: tuple[int, ...] = ()
    units: list[Unit] = field(default_factory=list)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.opening + tuple(i for unit in self.units for i in unit.ids)


class ContextPolicy:
    """What ``tool.context`` asks for; one object serves all trajectories."""

    def __init__(self, config: ContextConfig, writer: ContextWriter, window: int) -> None:
        self._config = config
        self._writer = writer
        self._limit = int(config.threshold * window)

    def check(self, envs: Environments) -> None:
        """Raise :class:`ConfigError` where the policy cannot write this environment's texts."""
        if envs.control_tokens and self._config.policy in ("shorten", "summarise"):
            raise ConfigError(
                f"tool.context.policy={self._config.policy} cannot change the observations of "
                f"{envs.name}, which contain chat markup of their own; use policy=keep_last, or an "
                "environment whose observations are messages or plain text"
            )

    def asks(self, history: History, added: int) -> bool:
        """Whether a summary is due once ``added`` tokens are appended."""
        if self._config.policy != "summarise":
            return False
        return len(history.ids) + added > self._limit

    def with_request(self, observation: Observation) -> Observation:
        """The observation, and the request for a summary behind it."""
        return _also(observation, self._config.request)

    def summarised(self, history: History, turn: Turn, *, chat: bool, tools: Tools) -> Turn:
        """Put a summary in the place of all units; returns its turn with what is said to it."""
        resume = _also(() if chat else "", self._config.resume)
        before = history.opening + turn.completion.token_ids
        ids = self._writer.observation(before, resume, tools, control_tokens=False)
        turn = replace(turn, observation_ids=ids, observation_text=self._config.resume)
        history.units[:] = [Unit(turn, resume, shortened=True)]
        return turn

    def edit(self, history: History, tools: Tools) -> None:
        """Leave out or shorten what is old, once the window is as full as configured."""
        if self._config.policy in ("none", "summarise") or len(history.ids) <= self._limit:
            return
        old = len(history.units) - self._config.keep_turns
        if self._config.policy == "keep_last":
            del history.units[: max(old, 0)]
            return
        before = history.opening
        for number, unit in enumerate(history.units):
            before += unit.turn.completion.token_ids
            if number < old and not unit.shortened:
                unit.observation = _shortened(unit.observation, self._config.max_old_observation)
                ids = self._writer.observation(
                    before, unit.observation, tools, control_tokens=False
                )
                unit.turn = replace(unit.turn, observation_ids=ids)
                unit.shortened = True
            before += unit.turn.observation_ids


def _also(observation: Observation, said: str) -> Observation:
    if isinstance(observation, str):
        return f"{observation}\n{said}\n"
    return (*observation, {"role": "user", "content": said})


def _shortened(observation: Observation, limit: int) -> Observation:
    if isinstance(observation, str):
        return truncate(observation, limit)
    return tuple(
        {**message, "content": truncate(message["content"], limit)}
        if isinstance(message.get("content"), str)
        else message
        for message in observation
    )
