"""The environments of a run, opened: each with its tools, its reward and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from agent_r1.algorithms.shaping import overlong_penalty
from agent_r1.config.environments import EnvironmentConfig, environment_configs, environment_named
from agent_r1.config.schema import Config, RewardConfig, SandboxConfig, ToolConfig
from agent_r1.errors import ConfigError
from agent_r1.reward.grader import Grader
from agent_r1.reward.sums import make_grader
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.group import Loop, Scorer
from agent_r1.rollout.limits import LoopLimits
from agent_r1.rollout.mixture import Mixture, WithStops, mixed_scorer
from agent_r1.rollout.own_loop import OwnLoop
from agent_r1.tool.base import BaseToolEnv
from agent_r1.tool.envs.agent import AgentEnv
from agent_r1.tool.open import SharedExecutor, open_tools, takes
from agent_r1.tool.protocol import Env
from agent_r1.tool.registry import ENVS, make_env
from agent_r1.types import Reward, Trajectory


@dataclass(frozen=True, slots=True)
class OpenedEnvironment:
    """One environment of a run. ``name`` is empty in a run with one."""

    settings: EnvironmentConfig
    env: Env
    grader: Grader

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def weight(self) -> float | None:
        return self.settings.weight

    @property
    def config(self) -> Config:
        """The run's configuration as this environment sees it."""
        return self.settings.config


@contextmanager
def open_environments(
    config: Config, *, only: str | None = None
) -> Iterator[tuple[OpenedEnvironment, ...]]:
    """All environments of a run, each with its reward; one sandbox serves them all.

    ``only`` opens the entry of this name and no other.

    Raises:
        AgentR1Error: one of them cannot be made; in a run with several the message says which.
    """
    with ExitStack() as stack:
        executor = stack.enter_context(SharedExecutor(config.sandbox))
        opened = []
        chosen = environment_configs(config) if only is None else [environment_named(config, only)]
        for settings in chosen:
            own = settings.config
            grader = stack.enter_context(open_grader(own.reward))
            env = stack.enter_context(open_environment(own.tool, own.sandbox, executor))
            opened.append(OpenedEnvironment(settings, env, grader))
        yield tuple(opened)


@contextmanager
def open_environment(
    tool: ToolConfig, sandbox: SandboxConfig, executor: SharedExecutor | None = None
) -> Iterator[Env]:
    """The configured environment with its tools and, if one of them runs programs, a sandbox."""
    env_class = ENVS.get(tool.env)
    with open_tools(tool, sandbox, executor) as tools, ExitStack() as stack:
        options = dict(tool.env_kwargs)
        if takes(env_class, "max_tool_response_length"):
            options.setdefault("max_tool_response_length", tool.max_tool_response_length)
        env = make_env(tool.env, tools if takes(env_class, "tools") else [], **options)
        stack.callback(env.close)
        yield env


@contextmanager
def open_tool_environment(tool: ToolConfig, sandbox: SandboxConfig) -> Iterator[BaseToolEnv]:
    """The same for what plays given texts: an environment that answers text with text."""
    with open_environment(tool, sandbox) as env:
        if not isinstance(env, BaseToolEnv):
            raise ConfigError(
                f"tool.env={tool.env} keeps a state of its own, and traces are played in "
                "environments derived from BaseToolEnv only; sample traces with agent-r1 eval, or "
                "take part yourself with agent-r1 env play"
            )
        yield env


@contextmanager
def open_grader(reward: RewardConfig) -> Iterator[Grader]:
    """The configured reward, bounded in time."""
    options = dict(reward.kwargs)
    with make_grader(reward.name, timeout_s=reward.timeout_s, options=options) as grader:
        yield grader


# --- sampling and scoring ----------------------------------------------------------------


def build_loop(envs: Sequence[OpenedEnvironment], engine: Engine, codec: Codec) -> Loop:
    """The loop of the environment, or one that hands each task to its environment's."""
    loops = {each.name: loop_of(each.config, each.env, engine, codec) for each in envs}
    return Mixture(loops) if list(loops) != [""] else loops[""]


def loop_of(config: Config, env: Env, engine: Engine, codec: Codec) -> Loop:
    """The environment's loop, or that of an agent which owns its own."""
    limits = loop_limits(config)
    loop: Loop
    if isinstance(env, AgentEnv):
        loop = OwnLoop(engine, codec, env, limits)
    else:
        loop = AgentLoop(engine, codec, env, limits, config.tool.context)
    return WithStops(loop, tuple(env.stop_strings))


def loop_limits(config: Config) -> LoopLimits:
    rollout = config.actor_rollout_ref.rollout
    return LoopLimits(
        max_turns=config.tool.max_turns,
        max_response_length=config.data.max_response_length,
        max_tokens_per_turn=rollout.response_length,
        timeout_s=rollout.trajectory_timeout_s,
        tool_timeout_s=config.tool.timeout_s,
    )


def make_scorer(envs: Sequence[OpenedEnvironment]) -> Scorer:
    """Scoring by the reward of each task's environment."""
    scorers = {each.name: scorer_of(each.config, each.grader) for each in envs}
    return mixed_scorer(scorers) if list(scorers) != [""] else scorers[""]


def compares_siblings(envs: Sequence[OpenedEnvironment]) -> bool:
    """Whether a reward of the run compares the trajectories of a group with each other.

    Raises:
        ConfigError: its groups have one member each, or their baseline is no member of them.
    """
    for each in envs:
        if not each.grader.wants_siblings:
            continue
        here = f" (environment {each.name})" if each.name else ""
        if each.config.actor_rollout_ref.rollout.n < 2:
            raise ConfigError(
                f"the reward {each.grader.name!r} compares the trajectories of a group{here}, and "
                "actor_rollout_ref.rollout.n=1 makes groups of one; set it to 4 or more"
            )
        if each.config.algorithm.adv_estimator == "remax":
            raise ConfigError(
                f"the reward {each.grader.name!r} compares the trajectories of a group{here}, and "
                "algorithm.adv_estimator=remax subtracts the reward of a greedy trajectory that is "
                "none of them; use grpo, rloo or another estimator"
            )
    return any(each.grader.wants_siblings for each in envs)


def scorer_of(config: Config, grader: Grader) -> Scorer:
    """Grading, and the length penalty on top of it where one is configured."""
    overlong = config.reward.overlong_buffer
    if not overlong.enable:
        return grader.graded

    async def scorer(trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Trajectory:
        graded = await grader.graded(trajectory, siblings)
        if graded.reward is None:
            return graded
        penalty = overlong_penalty(
            graded.response_length,
            max_length=config.data.max_response_length,
            buffer=overlong.len,
            penalty_factor=overlong.penalty_factor,
        )
        reward = graded.reward
        parts = {**reward.parts, "overlong": penalty}
        return replace(graded, reward=Reward(reward.value + penalty, parts, reward.per_turn))

    return scorer
