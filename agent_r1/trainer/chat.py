"""Talk to a policy in the very environment that it was trained in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from agent_r1.config.schema import Config
from agent_r1.rollout.agent_loop import AgentLoop, Sampling
from agent_r1.rollout.engine import Engine
from agent_r1.trainer import build
from agent_r1.trainer.policy import open_policy
from agent_r1.types import Message, Outcome, Task, Trajectory, Turn


def chat(
    config: Config,
    message: str | None = None,
    *,
    console: Console | None = None,
    read: Callable[[], str] | None = None,
) -> None:
    """Answer ``message``, or converse until end of input, ``/quit`` or Ctrl-C.

    What the model writes, what it runs and what the sandbox answers are shown as they
    happen. ``/new`` forgets the conversation so far.
    """
    console = console or Console()
    read = read or (lambda: console.input("[bold]you[/bold]  "))
    with asyncio.Runner() as runner, ExitStack() as stack:
        session = _prepare(config, stack, runner, console)
        if message is not None:
            runner.run(session.ask(message))
            return
        console.print("[dim]/new starts over, /quit ends[/dim]")
        while (line := _next_line(read)) is not None:
            if line == "/new":
                session.history = ()
            elif line:
                runner.run(session.ask(line))


def _next_line(read: Callable[[], str]) -> str | None:
    try:
        line = read().strip()
    except EOFError:
        return None
    return None if line in ("/quit", "/exit") else line


def _prepare(config: Config, stack: ExitStack, runner: asyncio.Runner, console: Console) -> Session:
    env = stack.enter_context(build.open_environment(config.tool, config.sandbox))
    policy = open_policy(config, env)
    engine = policy.build_engine()
    stack.callback(lambda: runner.run(engine.close()))
    loop = AgentLoop(engine, policy.codec, env, build.loop_limits(config))
    val = config.actor_rollout_ref.rollout.val_kwargs
    sampling = replace(
        build.train_sampling(config, env), temperature=val.temperature, top_p=val.top_p
    )
    speaks_chat = getattr(policy.codec.tokenizer, "chat_template", None) is not None
    return Session(loop, engine, sampling, console, speaks_chat)


@dataclass(slots=True)
class Session:
    """One conversation. ``speaks_chat``: the tokenizer has a chat template."""

    loop: AgentLoop
    engine: Engine
    sampling: Sampling
    console: Console
    speaks_chat: bool
    history: tuple[Message, ...] = ()
    asked: int = 0

    async def ask(self, text: str) -> Trajectory:
        """One user message and everything that the agent does about it."""
        self.history = (*self.history, {"role": "user", "content": text})
        prompt: tuple[Message, ...] | str = self.history if self.speaks_chat else text
        self.asked += 1
        group = f"chat-{self.asked}"
        self.engine.open([f"{group}/0"])
        try:
            trajectory = await self.loop.run(
                Task(group, prompt), group, 0, self.sampling, watch=_Transcript(self.console)
            )
        finally:
            self.engine.release(f"{group}/0")
        answer = {"role": "assistant", "content": trajectory.transcript}
        self.history = (*self.history, answer)
        if trajectory.outcome is not Outcome.FINISHED:
            reason = f": {trajectory.error}" if trajectory.error else ""
            self.console.print(Text(f"[{trajectory.outcome}{reason}]", "yellow"))
        return trajectory


class _Transcript:
    """Prints what is new of a turn each time it is shown one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._turn: tuple[int, ...] | None = None

    def __call__(self, turn: Turn) -> None:
        if turn.prompt_ids != self._turn:
            self._turn = turn.prompt_ids
            self._console.print(Text(turn.text.strip("\n"), "cyan"))
        elif turn.observation_text:
            self._console.print(Text(turn.observation_text.strip("\n"), "green"))
