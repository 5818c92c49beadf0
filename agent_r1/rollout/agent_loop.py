"""One trajectory: the decision process of a language model with tools.

``state`` is the context, ``action`` is a completion, and the environment's ``step`` is
the state transition. This file is the whole of it; siblings and batches are
``rollout/group.py``, and ``rollout/context.py`` makes ids of what environments say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from agent_r1.config.task import ContextConfig
from agent_r1.errors import (
    AgentR1Error,
    ContextExceeded,
    EngineError,
    EnvironmentContractError,
    TemplateError,
    describe,
)
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.context import ContextWriter, Tools
from agent_r1.rollout.editing import ContextPolicy, History, Unit
from agent_r1.rollout.engine import Engine, StreamingEngine
from agent_r1.rollout.limits import LoopLimits, Sampling, derive_seed
from agent_r1.rollout.opening import announced
from agent_r1.rollout.stream import TextStream, Watcher
from agent_r1.tool.base import CallContext, call_context
from agent_r1.tool.protocol import (
    Env,
    Environment,
    Observation,
    Start,
    Step,
    checked_start,
    checked_state,
    checked_step,
    environments_of,
)
from agent_r1.tracing import span
from agent_r1.types import (
    Completion,
    Finish,
    Outcome,
    SamplingParams,
    Task,
    ToolCall,
    Trajectory,
    Turn,
)


@dataclass(slots=True)
class _Episode:
    """What has happened so far; survives whatever interrupts the loop."""

    task: Task
    group_id: str
    index: int
    prompt: tuple[int, ...] = ()
    opening: str = ""
    turns: list[Turn] = field(default_factory=list)
    used: int = 0
    """Response tokens so far, the model's and the environment's."""
    start: Start = field(default_factory=Start)
    history: History = field(default_factory=History)
    summarising: bool = False
    """The turn under way is a summary, which the environment does not see."""
    state: Any = None
    watch: Watcher | None = None

    @property
    def id(self) -> str:
        return f"{self.group_id}/{self.index}"

    def add(self, turn: Turn) -> None:
        self.turns.append(turn)
        if self.watch is not None:
            self.watch.on_written(turn)

    def amend(self, turn: Turn) -> None:
        self.turns[-1] = turn
        if self.watch is not None:
            self.watch.on_observed(turn)


T = TypeVar("T")


class AgentLoop:
    """Runs trajectories against one engine and one kind of environment.

    A trajectory always comes back: what went wrong is its ``outcome`` and ``error``,
    and the turns before that are kept. Only cancellation and bugs of this package raise.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        env: Env,
        limits: LoopLimits,
        context: ContextConfig | None = None,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._contexts = ContextWriter(codec)
        self._envs = environments_of(env)
        self._limits = limits
        self._policy = ContextPolicy(
            context or ContextConfig(), self._contexts, engine.max_model_len
        )
        self._policy.check(self._envs)

    async def run(
        self,
        task: Task,
        group_id: str,
        index: int,
        sampling: Sampling,
        watch: Watcher | None = None,
    ) -> Trajectory:
        """Sample one trajectory. Opening and releasing its id is the caller's business.

        ``watch`` sees each turn as it grows, word by word where the engine can stream.
        """
        started = time.perf_counter()
        episode = _Episode(task, group_id, index, watch=watch)
        error: str | None = None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                env = self._envs.begin(task)
                try:
                    outcome = await self._episode(episode, env, sampling)
                finally:
                    await env.aclose()
        except TimeoutError:
            outcome = Outcome.TIMEOUT
        except ContextExceeded as failure:
            outcome, error = Outcome.CONTEXT, str(failure)
        except EngineError as failure:
            outcome, error = Outcome.ENGINE_ERROR, describe(failure)
        except _StepFailed as failure:
            outcome, error = Outcome.TOOL_ERROR, str(failure)
        return Trajectory(
            task=task,
            group_id=group_id,
            index=index,
            turns=tuple(episode.turns),
            outcome=outcome,
            error=error,
            seconds=time.perf_counter() - started,
            state=episode.state,
            opening=episode.opening,
        )

    async def close(self) -> None:
        """Nothing is held between trajectories."""

    async def _episode(self, episode: _Episode, env: Environment, sampling: Sampling) -> Outcome:
        await self._open(episode, env, sampling)
        outcome = await self._turns(episode, env, sampling)
        episode.state = _state(env)
        return outcome

    async def _open(self, episode: _Episode, env: Environment, sampling: Sampling) -> None:
        """Let the environment speak first. Its part of the opening is told in words too."""
        start = await self._asked(env, "reset", env.areset(episode.task), episode, sampling, 0)
        try:
            episode.start = announced(episode.task, checked_start(env, start))
            episode.prompt = self._contexts.opening(episode.task, episode.start)
        except EnvironmentContractError as failure:
            raise _StepFailed(describe(failure)) from failure
        episode.history = History(episode.prompt)
        if episode.start != Start():
            episode.opening = self._codec.decode(episode.prompt)

    async def _turns(self, episode: _Episode, env: Environment, sampling: Sampling) -> Outcome:
        for number in range(self._limits.max_turns):
            budget, exhausted = self._budget(episode)
            if budget < 1:
                return exhausted
            params = sampling.params(budget, episode.id, number)
            turn = await self._act(episode, env, params)
            episode.add(turn)
            if turn.completion.finish is Finish.LENGTH:
                return exhausted
            if episode.summarising:
                episode.amend(self._summarised(episode, turn))
                continue
            turn, step = await self._observe(episode, env, turn, sampling, number)
            if step.terminated or step.truncated:
                episode.amend(turn)
                return Outcome.FINISHED if step.terminated else Outcome.TURN_LIMIT
            if number + 1 < self._limits.max_turns:
                turn = self._go_on(episode, turn, step)
            episode.amend(turn)
        return Outcome.TURN_LIMIT

    def _budget(self, episode: _Episode) -> tuple[int, Outcome]:
        """Tokens the next completion may have, and what running out of them is called."""
        response = self._limits.max_response_length - episode.used
        context = self._engine.max_model_len - len(episode.prompt)
        per_turn = self._limits.max_tokens_per_turn or response
        exhausted = Outcome.CONTEXT if context < min(response, per_turn) else Outcome.LENGTH
        return min(response, context, per_turn), exhausted

    async def _act(self, episode: _Episode, env: Environment, params: SamplingParams) -> Turn:
        started = time.perf_counter()
        with span("engine call", prompt_tokens=len(episode.prompt)):
            completion = await self._sample(episode, env, params)
        episode.used += completion.length
        return Turn(
            prompt_ids=episode.prompt,
            completion=completion,
            text=self._codec.text_of(completion),
            generate_seconds=time.perf_counter() - started,
        )

    async def _sample(
        self, episode: _Episode, env: Environment, params: SamplingParams
    ) -> Completion:
        """One completion, shown while it is sampled if somebody looks on."""
        if episode.watch is None:
            completion = await self._engine.generate(episode.prompt, params, episode.id)
            return _cut_at_trigger(env, self._codec, completion)
        shown = TextStream(self._codec, params.stop, episode.watch.on_text)
        # An environment that cuts completions itself may take back what was shown.
        if isinstance(self._engine, StreamingEngine) and not env.cuts_ids:
            completion = await self._engine.stream(episode.prompt, params, episode.id, shown.feed)
        else:
            completion = await self._engine.generate(episode.prompt, params, episode.id)
            completion = _cut_at_trigger(env, self._codec, completion)
        shown.finish(self._codec.text_of(completion))
        return completion

    async def _observe(
        self, episode: _Episode, env: Environment, turn: Turn, sampling: Sampling, number: int
    ) -> tuple[Turn, Step]:
        """Let the environment answer. Its clock and its failures stay its own."""
        started = time.perf_counter()
        with span("tool call", turn=number):
            answer = await self._asked(env, "step", env.astep(turn.text), episode, sampling, number)
        try:
            step = checked_step(env, answer)
        except EnvironmentContractError as failure:
            raise _StepFailed(describe(failure)) from failure
        seconds = time.perf_counter() - started
        calls = tuple(ToolCall(bool(ok), seconds / len(step.success)) for ok in step.success)
        reward = None if step.reward is None else float(step.reward)
        return replace(turn, tool_calls=calls, tool_seconds=seconds, reward=reward), step

    async def _asked(
        self,
        env: Environment,
        method: str,
        answer: Awaitable[T],
        episode: _Episode,
        sampling: Sampling,
        number: int,
    ) -> T:
        """What the environment answers, within its time."""
        timeout = self._limits.tool_timeout_s
        source = "tool" if method == "step" else method
        call_context.set(
            CallContext(
                trajectory_id=episode.id,
                turn=number,
                seed=derive_seed(source, sampling.seed, episode.id, number),
                deadline=None if timeout is None else time.monotonic() + timeout,
            )
        )
        clock = asyncio.timeout(timeout)
        try:
            async with clock:
                return await answer
        except Exception as failure:
            hung = f"{type(env).__name__}.{method} gave no answer within {timeout} s: give the "
            hung += "tool a time limit of its own, or raise tool.timeout_s"
            raise _StepFailed(hung if clock.expired() else describe(failure)) from failure

    def _go_on(self, episode: _Episode, turn: Turn, step: Step) -> Turn:
        """The context of the next turn: this one continued, or another in its place."""
        tools, history = episode.start.tools, episode.history
        try:
            if step.context is not None:
                episode.prompt = self._contexts.replacement(
                    step.context, tools, control_tokens=self._envs.control_tokens
                )
                episode.history = History(episode.prompt)
                return turn
            shown, ids = step.observation, self._observed(turn, step.observation, tools)
            if self._policy.asks(history, turn.completion.length + len(ids)):
                shown = self._policy.with_request(shown)
                ids = self._observed(turn, shown, tools)
                episode.summarising = True
        except TemplateError as failure:
            raise _StepFailed(describe(failure)) from failure
        text = shown if isinstance(shown, str) else self._codec.decode(ids)
        turn = replace(turn, observation_ids=ids, observation_text=text)
        episode.used += len(ids)
        history.units.append(Unit(turn, shown))
        self._policy.edit(history, tools)
        episode.prompt = history.ids
        return turn

    def _observed(self, turn: Turn, shown: Observation, tools: Tools) -> tuple[int, ...]:
        before = turn.prompt_ids + turn.completion.token_ids
        return self._contexts.observation(
            before, shown, tools, control_tokens=self._envs.control_tokens
        )

    def _summarised(self, episode: _Episode, turn: Turn) -> Turn:
        """The episode goes on from its opening and this summary."""
        history = episode.history
        chat = not isinstance(history.units[-1].observation, str)
        turn = self._policy.summarised(history, turn, chat=chat, tools=episode.start.tools)
        episode.summarising = False
        episode.used += len(turn.observation_ids)
        episode.prompt = history.ids
        return turn


def _state(env: Environment) -> Any:
    try:
        return checked_state(env)
    except Exception as failure:
        raise _StepFailed(describe(failure)) from failure


def _cut_at_trigger(env: Environment, codec: Codec, completion: Completion) -> Completion:
    """Apply the environment's own token-level trigger, for patterns no stop string can say."""
    if not env.cuts_ids:
        return completion
    try:
        kept = env.kept_ids(codec.tokenizer, completion.token_ids)
    except Exception as failure:
        raise _StepFailed(describe(failure)) from failure
    if kept == len(completion.token_ids):
        return completion
    return completion.cut(kept, Finish.STOP)


class _StepFailed(AgentR1Error):
    """The environment, its tool or the sandbox broke; carried to the trajectory's ``error``."""
