"""One trajectory: the decision process of a language model with tools.

``state`` is the context, ``action`` is a completion, and the environment's ``step`` is
the state transition. This file is the whole of it; siblings and batches are
``rollout/group.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field, replace

from agent_r1.errors import AgentR1Error, ContextExceeded, EngineError, describe
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engine import Engine, StreamingEngine
from agent_r1.rollout.stream import TextStream, Watcher
from agent_r1.tool.base import (
    BaseToolEnv,
    CallContext,
    call_context,
    has_trigger,
    trigger_length,
    validate_step_result,
)
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


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """Where an episode is cut short. Lengths in tokens, times in seconds."""

    max_turns: int
    max_response_length: int
    """Model and tool tokens of the whole trajectory."""
    max_tokens_per_turn: int | None = None
    timeout_s: float | None = None
    """Wall clock of the trajectory, waiting for the engine included."""
    tool_timeout_s: float | None = None
    """Wall clock of one environment step; a tool that hangs fails its trajectory."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a trajectory samples; the seed of each turn is derived from ``seed``."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def params(self, budget: int, trajectory_id: str, turn: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=budget,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            seed=derive_seed(self.seed, trajectory_id, turn),
        )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts, on every machine and in every run."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(slots=True)
class _Episode:
    """What has happened so far; survives whatever interrupts the loop."""

    task: Task
    group_id: str
    index: int
    prompt: tuple[int, ...]
    turns: list[Turn] = field(default_factory=list)
    used: int = 0
    """Response tokens so far, the model's and the tools'."""
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


class AgentLoop:
    """Runs trajectories against one engine and one kind of environment.

    A trajectory always comes back: what went wrong is its ``outcome`` and ``error``,
    and the turns before that are kept. Only cancellation and bugs of this package raise.
    """

    def __init__(self, engine: Engine, codec: Codec, env: BaseToolEnv, limits: LoopLimits) -> None:
        self._engine = engine
        self._codec = codec
        self._env = env
        self._limits = limits

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
        episode = _Episode(task, group_id, index, self._codec.render(task), watch=watch)
        error: str | None = None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                env = self._env.for_trajectory(task)
                try:
                    outcome = await self._episode(episode, env, sampling)
                finally:
                    if env is not self._env:
                        env.close()
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
        )

    async def close(self) -> None:
        """Nothing is held between trajectories."""

    async def _episode(self, episode: _Episode, env: BaseToolEnv, sampling: Sampling) -> Outcome:
        for number in range(self._limits.max_turns):
            budget, exhausted = self._budget(episode)
            if budget < 1:
                return exhausted
            params = sampling.params(budget, episode.id, number)
            turn = await self._act(episode, env, params)
            episode.add(turn)
            if turn.completion.finish is Finish.LENGTH:
                return exhausted
            turn, observation, active = await self._observe(episode, env, turn, sampling, number)
            if active and number + 1 < self._limits.max_turns:
                turn = self._with_observation(env, turn, observation)
            episode.amend(turn)
            if not active:
                return Outcome.FINISHED
            episode.used += len(turn.observation_ids)
            episode.prompt = turn.next_prompt_ids
        return Outcome.TURN_LIMIT

    def _budget(self, episode: _Episode) -> tuple[int, Outcome]:
        """Tokens the next completion may have, and what running out of them is called."""
        response = self._limits.max_response_length - episode.used
        context = self._engine.max_model_len - len(episode.prompt)
        per_turn = self._limits.max_tokens_per_turn or response
        exhausted = Outcome.CONTEXT if context < min(response, per_turn) else Outcome.LENGTH
        return min(response, context, per_turn), exhausted

    async def _act(self, episode: _Episode, env: BaseToolEnv, params: SamplingParams) -> Turn:
        started = time.perf_counter()
        completion = await self._sample(episode, env, params)
        episode.used += completion.length
        return Turn(
            prompt_ids=episode.prompt,
            completion=completion,
            text=self._codec.text_of(completion),
            generate_seconds=time.perf_counter() - started,
        )

    async def _sample(
        self, episode: _Episode, env: BaseToolEnv, params: SamplingParams
    ) -> Completion:
        """One completion, shown while it is sampled if somebody looks on."""
        if episode.watch is None:
            completion = await self._engine.generate(episode.prompt, params, episode.id)
            return _cut_at_trigger(env, self._codec, completion)
        shown = TextStream(self._codec, params.stop, episode.watch.on_text)
        # An environment that cuts completions itself may take back what was shown.
        if isinstance(self._engine, StreamingEngine) and not has_trigger(env):
            completion = await self._engine.stream(episode.prompt, params, episode.id, shown.feed)
        else:
            completion = await self._engine.generate(episode.prompt, params, episode.id)
            completion = _cut_at_trigger(env, self._codec, completion)
        shown.finish(self._codec.text_of(completion))
        return completion

    async def _observe(
        self, episode: _Episode, env: BaseToolEnv, turn: Turn, sampling: Sampling, number: int
    ) -> tuple[Turn, str, bool]:
        """Let the environment answer. Its clock and its failures stay its own."""
        started = time.perf_counter()
        timeout = self._limits.tool_timeout_s
        call_context.set(
            CallContext(
                trajectory_id=episode.id,
                turn=number,
                seed=derive_seed("tool", sampling.seed, episode.id, number),
                deadline=None if timeout is None else time.monotonic() + timeout,
            )
        )
        clock = asyncio.timeout(timeout)
        try:
            async with clock:
                result = await env.astep(turn.text)
            observation, successes, active = validate_step_result(env, result)
        except Exception as failure:
            hung = f"{type(env).__name__}.step gave no answer within {timeout} s: give the tool a "
            hung += "time limit of its own, or raise tool.timeout_s"
            raise _StepFailed(hung if clock.expired() else describe(failure)) from failure
        seconds = time.perf_counter() - started
        calls = tuple(ToolCall(ok, seconds / len(successes)) for ok in successes)
        return replace(turn, tool_calls=calls, tool_seconds=seconds), observation, active

    def _with_observation(self, env: BaseToolEnv, turn: Turn, observation: str) -> Turn:
        ids = self._codec.encode_observation(observation, control_tokens=env.control_tokens)
        return replace(turn, observation_ids=ids, observation_text=observation)


def _cut_at_trigger(env: BaseToolEnv, codec: Codec, completion: Completion) -> Completion:
    """Apply the environment's own token-level trigger, for patterns no stop string can say."""
    try:
        kept = trigger_length(env, codec.tokenizer, completion.token_ids)
    except Exception as failure:
        raise _StepFailed(describe(failure)) from failure
    if kept == len(completion.token_ids):
        return completion
    return completion.cut(kept, Finish.STOP)


class _StepFailed(AgentR1Error):
    """The environment, its tool or the sandbox broke; carried to the trajectory's ``error``."""
