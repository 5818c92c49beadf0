"""A person in the place of the model: the same loop, codec, limits and reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import takewhile

from rich.console import Console
from rich.text import Text

from agent_r1.config.schema import Config
from agent_r1.config.task import RewardConfig
from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.errors import ConfigError
from agent_r1.rollout.codec import Codec, open_codec
from agent_r1.rollout.group import Loop, Scorer
from agent_r1.rollout.limits import Sampling
from agent_r1.testing.engine import EngineCall, Reply, ScriptedEngine
from agent_r1.testing.tokenizer import byte_tokenizer
from agent_r1.tool.envs.agent import AgentEnv
from agent_r1.tool.protocol import Env
from agent_r1.trainer import build
from agent_r1.trainer.environments import loop_of, open_grader, scorer_of
from agent_r1.types import Task, Trajectory


def play(
    config: Config,
    env: Env,
    task: Task,
    *,
    console: Console | None = None,
    read: Callable[[], str] | None = None,
) -> Trajectory:
    """One episode of ``task`` in which ``read`` writes what the model would.

    With a model configured, everything is shown as its tokenizer and chat template put it;
    without one a token is a byte and messages look like ChatML. A line that ends in a backslash
    goes on in the next one.
    The reward is the configured one, where one was configured or the task has an answer.

    Raises:
        ConfigError: the environment is an agent that owns its loop.
        EOFError, KeyboardInterrupt: whoever plays has had enough.
    """
    console = console or Console()
    person = _Person(console, read or (lambda: console.input("[bold]you[/bold]  ")))
    path = config.actor_rollout_ref.model.path
    codec = open_codec(config.actor_rollout_ref.model) if path else Codec(byte_tokenizer())
    engine = ScriptedEngine(codec.tokenizer, person.answer, max_model_len=config.context_window)
    if isinstance(env, AgentEnv):
        raise ConfigError(
            f"tool.env={config.tool.env} is an agent that asks a model itself; only environments "
            "in which a model takes turns can be played"
        )
    loop = loop_of(config, env, engine, codec)
    sampling = build.train_sampling(config)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        trajectory = runner.run(_played(loop, task, sampling))
        person.show_rest(trajectory)
        if task.answer is not None or config.reward.name != RewardConfig().name:
            grader = stack.enter_context(open_grader(config.reward))
            trajectory = runner.run(_scored(scorer_of(config, grader), trajectory))
    _show_end(console, trajectory, counted="tokens" if path else "bytes")
    return trajectory


async def _played(loop: Loop, task: Task, sampling: Sampling) -> Trajectory:
    return await loop.run(task, "play", 0, sampling)


async def _scored(scorer: Scorer, trajectory: Trajectory) -> Trajectory:
    return await scorer(trajectory)


def as_trace(trajectory: Trajectory) -> Trace:
    """The episode for a cold start: what the person wrote is learned, what it met is not.

    Raises :class:`ConfigError` where the environment replaced the context, which a trace
    cannot say.
    """
    if len(trajectory.samples()) > 1:
        raise ConfigError("this episode replaced its context, which no trace can say; not saved")
    segments: list[Segment] = []
    for turn in trajectory.turns:
        segments.append(Segment(Author.MODEL, turn.text))
        if turn.observation_text:
            segments.append(Segment(Author.TOOL, turn.observation_text))
    while segments and segments[-1].author is Author.TOOL:
        segments.pop()
    prompt = trajectory.opening or trajectory.task.prompt
    return Trace(prompt, tuple(segments), trajectory.task.data_source)


@dataclass(slots=True)
class _Person:
    """Shows what is new in a context and reads an answer."""

    console: Console
    read: Callable[[], str]
    _seen: str = ""
    _said: list[str] = field(default_factory=list)

    def answer(self, call: EngineCall) -> Reply:
        """What the person writes behind this prompt."""
        shown = call.prompt_text
        if self._said and shown.startswith(self._seen):
            shown = shown[len(self._seen) :]
            shown = shown[_alike(shown, self._said[-1]) :]  # which may have been cut
        elif self._said:
            self.console.print("[yellow]the context was replaced; it is now:[/yellow]")
        self._write(shown)
        room = call.params.max_new_tokens
        self.console.print(f"[dim]context {len(call.prompt_ids)}, at most {room} more[/dim]")
        lines = [self.read()]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self.read())
        self._said.append("\n".join(lines))
        self._seen = call.prompt_text
        return Reply(self._said[-1])

    def show_rest(self, trajectory: Trajectory) -> None:
        """What came after the last answer."""
        if trajectory.turns and trajectory.turns[-1].observation_text:
            self._write(trajectory.turns[-1].observation_text)

    def _write(self, text: str) -> None:
        safe = text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
        self.console.print(Text(safe, "green"), soft_wrap=True)


def _alike(first: str, second: str) -> int:
    """How many characters both begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def _show_end(console: Console, trajectory: Trajectory, counted: str) -> None:
    rewards = [turn.reward for turn in trajectory.turns if turn.reward is not None]
    console.print(
        f"{trajectory.outcome.value} after {len(trajectory.turns)} turns, "
        f"{trajectory.response_length} {counted} after the prompt"
        + (f": {trajectory.error}" if trajectory.error else "")
    )
    if rewards:
        console.print(f"rewards of the environment: {', '.join(f'{r:g}' for r in rewards)}")
    if trajectory.reward is not None:
        parts = ", ".join(f"{name} {value:g}" for name, value in trajectory.reward.parts.items())
        console.print(f"reward {trajectory.reward.value:g}" + (f" ({parts})" if parts else ""))
