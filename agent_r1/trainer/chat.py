"""Talk to a policy in the environment that it was trained in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from agent_r1.config.schema import Config
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.group import Loop
from agent_r1.rollout.limits import Sampling
from agent_r1.trainer import build
from agent_r1.trainer.environments import build_loop, open_environments
from agent_r1.trainer.policy import open_policy
from agent_r1.types import Message, Outcome, Task, Trajectory, Turn
from agent_r1.under_way import under_way


def chat(
    config: Config,
    message: str | None = None,
    *,
    env: str | None = None,
    console: Console | None = None,
    read: Callable[[], str] | None = None,
) -> None:
    """Answer ``message``, or converse until end of input, ``/quit`` or Ctrl-C.

    What the model writes is shown token by token, and what the tools answer when they do.
    ``/new`` forgets the conversation so far. Ctrl-C during an answer ends the answer, which
    then was never asked for; at the prompt it ends the conversation. ``env`` chooses one of a
    run's environments, otherwise it is the first.
    """
    console = console or Console()
    read = read or (lambda: console.input("[bold]you[/bold]  "))
    with asyncio.Runner() as runner, ExitStack() as stack:
        with under_way("opening the policy"):
            session = _prepare(config, env, stack, runner, console)
        if message is not None:
            runner.run(session.ask(message))
            return
        console.print("[dim]/new starts over, /quit ends[/dim]")
        while (line := _next_line(read)) is not None:
            if line == "/new":
                session.history = ()
            elif line:
                try:
                    runner.run(session.ask(line))
                except KeyboardInterrupt:
                    console.print("\n[yellow]stopped; the question is forgotten[/yellow]")


def _next_line(read: Callable[[], str]) -> str | None:
    try:
        line = read().strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line in ("/quit", "/exit") else line


def _prepare(
    config: Config, env: str | None, stack: ExitStack, runner: asyncio.Runner, console: Console
) -> Session:
    known = list(config.envs)
    name = env if env is not None else next(iter(known), None)
    (opened,) = stack.enter_context(open_environments(config, only=name))
    if len(known) > 1:
        others = ", ".join(each for each in known if each != name)
        console.print(f"[dim]in the environment {name}; --env chooses another ({others})[/dim]")
    policy = open_policy(config, [opened.env])
    engine = policy.build_engine()
    stack.callback(lambda: runner.run(engine.close()))
    loop = build_loop([opened], engine, policy.codec)
    stack.callback(lambda: runner.run(loop.close()))
    val = config.actor_rollout_ref.rollout.val_kwargs
    sampling = replace(build.train_sampling(config), temperature=val.temperature, top_p=val.top_p)
    speaks_chat = getattr(policy.codec.tokenizer, "chat_template", None) is not None
    return Session(loop, engine, sampling, console, speaks_chat, opened.name)


@dataclass(slots=True)
class Session:
    """One conversation. ``speaks_chat``: the tokenizer has a chat template."""

    loop: Loop
    engine: Engine
    sampling: Sampling
    console: Console
    speaks_chat: bool
    env: str = ""
    history: tuple[Message, ...] = ()
    asked: int = 0

    async def ask(self, text: str) -> Trajectory:
        """One user message and everything that the agent does about it.

        An answer that is interrupted, or that environment or engine failed to give, leaves the
        conversation as it was before the question.
        """
        asked: tuple[Message, ...] = (*self.history, {"role": "user", "content": text})
        prompt: tuple[Message, ...] | str = asked if self.speaks_chat else text
        self.asked += 1
        group = f"chat-{self.asked}"
        transcript = _Transcript(self.console)
        self.engine.open([f"{group}/0"])
        try:
            trajectory = await self.loop.run(
                Task(group, prompt, env=self.env), group, 0, self.sampling, watch=transcript
            )
        finally:
            self.engine.release(f"{group}/0")
            transcript.end_line()
        if not trajectory.outcome.failed:
            self.history = (*asked, {"role": "assistant", "content": trajectory.transcript})
        if trajectory.outcome is not Outcome.FINISHED:
            reason = f": {trajectory.error}" if trajectory.error else ""
            self.console.print(Text(f"[{trajectory.outcome}{reason}]", "yellow"))
        return trajectory


class _Transcript:
    """Prints a trajectory while it happens; a ``Watcher``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = False
        """The cursor stands behind text, not at the beginning of a line."""

    def on_text(self, piece: str) -> None:
        self._write(piece, "cyan")

    def on_written(self, turn: Turn) -> None:
        self.end_line()

    def on_observed(self, turn: Turn) -> None:
        if turn.observation_text:
            self._write(turn.observation_text.strip("\n"), "green")
            self.end_line()
        for call in turn.tool_calls:
            word, style = ("worked", "dim") if call.success else ("failed", "red")
            self._write(f"[tool {word}, {call.seconds:.1f} s]", style)
            self.end_line()

    def end_line(self) -> None:
        if self._open:
            self._console.print()
        self._open = False

    def _write(self, text: str, style: str) -> None:
        """As it is, but for escape sequences: a model shall not steer the terminal."""
        if text:
            safe = text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
            self._console.print(Text(safe, style), end="", soft_wrap=True)
            self._open = not text.endswith("\n")
