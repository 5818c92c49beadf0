"""Test whether an environment of the full protocol keeps its contract, before training in it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_r1.errors import EnvironmentContractError, describe
from agent_r1.testing.check_env import PROBES, EnvReport
from agent_r1.tool.base import CallContext, call_context
from agent_r1.tool.protocol import (
    Environment,
    Environments,
    Start,
    Step,
    checked_start,
    checked_state,
    checked_step,
)
from agent_r1.types import Task

T = TypeVar("T")
_BESIDE = 8


def check_environment(
    environments: Environments,
    tasks: Sequence[Task] = (),
    texts: Sequence[str] = (),
    *,
    seed: int = 0,
    timeout_s: float = 30.0,
) -> EnvReport:
    """Exercise an environment as the agent loop would, and hold it to the protocol.

    Give ``tasks`` as your data set has them and ``texts`` that are actions of your
    environment; without them only the way it takes nonsense can be checked.

    Checked: ``reset`` returns a ``Start`` and ``step`` a ``Step``, within ``timeout_s`` seconds
    each, and neither raises, whatever the model wrote; the final state is plain data; an episode
    with the same seed, task and actions goes the same way again, alone and beside others in
    other threads; a step that is cancelled can be closed, and the next episode is none the worse.

    Raises:
        EnvironmentContractError: lists every violation that was found.
    """
    check = _Check(environments, tuple(tasks) or (Task("check", "check"),), seed, timeout_s)

    def run() -> None:
        asyncio.run(check.all(tuple(texts)))

    with ThreadPoolExecutor(1, "agent-r1-check") as thread:  # where a notebook's loop runs already
        thread.submit(contextvars.Context().run, run).result()
    if check.problems:
        listed = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(check.problems, 1))
        raise EnvironmentContractError(
            f"{environments.name} breaks the contract of Environment:\n{listed}"
        )
    return EnvReport(check.steps, check.calls, tuple(check.warnings))


@dataclass(frozen=True, slots=True)
class _Episode:
    """What was seen of one."""

    start: Start
    steps: tuple[Step, ...]
    state: Any

    def difference(self, other: _Episode) -> str | None:
        """What is not as in ``other``, in words."""
        if self.start != other.start:
            return f"reset gave {self.start!r:.150} and {other.start!r:.150}"
        for i, (mine, theirs) in enumerate(zip(self.steps, other.steps, strict=False)):
            if mine != theirs:
                return f"step {i} gave {mine!r:.150} and {theirs!r:.150}"
        if len(self.steps) != len(other.steps):
            return f"{len(self.steps)} steps and {len(other.steps)}"
        if self.state != other.state:
            return f"the final state was {self.state!r:.150} and {other.state!r:.150}"
        return None


class _Check:
    def __init__(
        self, environments: Environments, tasks: Sequence[Task], seed: int, timeout_s: float
    ) -> None:
        self._environments = environments
        self._tasks = tasks
        self._seed = seed
        self._timeout_s = timeout_s
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.steps = self.calls = 0

    async def all(self, texts: Sequence[str]) -> None:
        """Every check; later ones only where the earlier ones found nothing."""
        stops = self._environments.stop_strings
        if not isinstance(stops, tuple) or not all(isinstance(s, str) and s for s in stops):
            self.problems.append(
                f"stop_strings must be a tuple of non-empty strings, not {stops!r}"
            )
        for task in self._tasks:
            await self._one_by_one(task, texts)
        for task in () if self.problems else self._tasks:
            await self._again(task, texts)
        if not self.problems:
            await self._cancelled(self._tasks[0], (*texts, "")[0])
        if texts and not self.calls and not self._rewarded:
            self.warnings.append(
                "none of your texts called a tool or earned a reward: are they actions of this "
                "environment?"
            )

    _rewarded = False

    async def _one_by_one(self, task: Task, texts: Sequence[str]) -> None:
        """Your texts as one episode, and each probe as the first action of one of its own."""
        for actions in ((*texts,), *((probe,) for probe in PROBES)):
            try:
                seen = await self._episode(task, actions)
            except Exception as error:
                self.problems.append(f"task {task.id!r}, {_shown(actions)}: {describe(error)}")
                continue
            self.steps += len(seen.steps)
            self.calls += sum(len(step.success) for step in seen.steps)
            self._rewarded = self._rewarded or any(step.reward for step in seen.steps)

    async def _again(self, task: Task, texts: Sequence[str]) -> None:
        """The same episode alone, once more, and beside others."""
        actions = tuple(texts) or PROBES[:3]
        alone = await self._episode(task, actions)
        again = await self._episode(task, actions)
        if told := again.difference(alone):
            self.problems.append(
                f"task {task.id!r}: the same seed and actions went another way the second time, so "
                f"runs do not repeat: {told}. Draw from agent_r1.tool.call_context().seed"
            )
            return
        others = [self._episode(task, PROBES[i : i + 2], name=f"other{i}") for i in range(_BESIDE)]
        beside, *_ = await asyncio.gather(self._episode(task, actions), *others)
        if told := beside.difference(alone):
            self.problems.append(
                f"task {task.id!r}: an episode went another way beside others, so they share a "
                f"state: {told}. Keep state on self only"
            )

    async def _cancelled(self, task: Task, text: str) -> None:
        """A trajectory whose time is up in the middle of a step."""
        env = self._begin(task, "cancelled", 0)
        await self._timed(env.areset(task), "reset")
        step = asyncio.ensure_future(env.astep(text))
        await asyncio.sleep(0)
        step.cancel()
        await asyncio.wait({step}, timeout=self._timeout_s)
        if not step.done():
            self.problems.append(f"a cancelled step did not end within {self._timeout_s:g} s")
        try:
            await self._timed(env.aclose(), "close")
            await self._episode(task, (text,))
        except Exception as error:
            self.problems.append(f"after a cancelled step: {describe(error)}")

    async def _episode(self, task: Task, actions: Sequence[str], name: str = "alone") -> _Episode:
        env = self._begin(task, name, 0)
        try:
            start = checked_start(env, await self._timed(env.areset(task), "reset"))
            steps: list[Step] = []
            for turn, action in enumerate(actions):
                call_context.set(CallContext(f"check/{name}", turn, self._seed))
                steps.append(checked_step(env, await self._timed(env.astep(action), "step")))
                if steps[-1].terminated or steps[-1].truncated:
                    break
            return _Episode(start, tuple(steps), checked_state(env))
        finally:
            await self._timed(env.aclose(), "close")

    def _begin(self, task: Task, name: str, turn: int) -> Environment:
        call_context.set(CallContext(f"check/{name}", turn, self._seed))
        return self._environments.begin(task)

    async def _timed(self, awaited: Awaitable[T], what: str) -> T:
        try:
            return await asyncio.wait_for(awaited, self._timeout_s)
        except TimeoutError:
            message = f"{what} did not return within {self._timeout_s:g} s"
            raise EnvironmentContractError(message) from None


def _shown(actions: Sequence[str]) -> str:
    text = ", ".join(repr(a if len(a) <= 60 else a[:57] + "...") for a in actions)
    return f"actions {text}" if text else "no action"
