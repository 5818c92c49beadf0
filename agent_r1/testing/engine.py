"""An engine whose model is a script."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agent_r1.errors import EngineError
from agent_r1.types import Completion, Finish, SamplingParams


class _Hang:
    """See :data:`HANG`."""


HANG = _Hang()
"""A reply that never comes: ``generate`` waits until it is cancelled."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the scripted model writes in one turn.

    ``ends`` is whether it closes with its end-of-sequence token (a stop string or the
    token budget may cut it before). ``token_ids`` replaces the tokenizer's own reading of
    ``text``, for completions that are not what re-tokenising their text would give.
    """

    text: str = ""
    ends: bool = True
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """One per token, the end-of-sequence token included; ``None``: -1.0 each."""


Scripted: TypeAlias = str | Reply | Exception | _Hang


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One recorded call of ``generate``."""

    request_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    prompt_text: str = field(repr=False)
    params: SamplingParams


class ScriptedEngine:
    """Implements :class:`agent_r1.rollout.engine.Engine` with replies given beforehand.

    ``script`` is a sequence of replies, one per turn and the same for every trajectory
    (past its end is an :class:`EngineError`), or a function of the call. An exception is
    raised; :data:`HANG` hangs. Everything that a real engine obeys is obeyed: the token
    budget, stop strings (the whole token that completes one is kept), the context length.
    """

    def __init__(
        self,
        tokenizer: Any,
        script: Sequence[Scripted] | Callable[[EngineCall], Scripted],
        *,
        max_model_len: int = 1 << 16,
    ) -> None:
        self.tokenizer = tokenizer
        self.calls: list[EngineCall] = []
        self.open_ids: set[str] = set()
        self.released: list[str] = []
        self.policy_version = 0
        self.loaded: list[tuple[Any, int]] = []
        self.closed = False
        self._script = script
        self._max_model_len = max_model_len
        self._turns: Counter[str] = Counter()

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def open(self, request_ids: Sequence[str]) -> None:
        self.open_ids.update(request_ids)

    def release(self, request_id: str) -> None:
        self.open_ids.discard(request_id)
        self.released.append(request_id)
        self._turns.pop(request_id, None)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> Completion:
        if len(prompt_ids) + params.max_new_tokens > self._max_model_len:
            raise EngineError(
                f"{len(prompt_ids)} prompt tokens and {params.max_new_tokens} new ones do not fit "
                f"into {self._max_model_len}"
            )
        turn = self._turns[request_id]
        self._turns[request_id] += 1
        text = self.tokenizer.decode(list(prompt_ids), skip_special_tokens=False)
        call = EngineCall(request_id, turn, tuple(prompt_ids), text, params)
        self.calls.append(call)
        reply = self._reply(call)
        await asyncio.sleep(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, _Hang):
            await asyncio.Event().wait()
            raise AssertionError("unreachable: the event is never set")
        return self._complete(Reply(reply) if isinstance(reply, str) else reply, params)

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        on_tokens: Callable[[Sequence[int]], None],
    ) -> Completion:
        """Like ``generate``, one token after another."""
        completion = await self.generate(prompt_ids, params, request_id)
        for token in completion.token_ids:
            on_tokens((token,))
            await asyncio.sleep(0)
        return completion

    async def load_weights(self, source: Any, version: int, *, keep_cache: bool = False) -> int:
        self.loaded.append((source, version))
        self.policy_version = version
        return 0

    async def close(self) -> None:
        self.closed = True

    def _reply(self, call: EngineCall) -> Scripted:
        if callable(self._script):
            return self._script(call)
        if call.turn >= len(self._script):
            raise EngineError(f"the script has no reply for turn {call.turn} of {call.request_id}")
        return self._script[call.turn]

    def _complete(self, reply: Reply, params: SamplingParams) -> Completion:
        ids = reply.token_ids
        if ids is None:
            ids = tuple(self.tokenizer.encode(reply.text, add_special_tokens=False))
        ids, finish, stop = self._cut(ids, reply.ends, params)
        logprobs = (reply.logprobs or (-1.0,) * len(ids))[: len(ids)]
        return Completion(ids, logprobs, finish, ((0, self.policy_version),), stop)

    def _cut(
        self, ids: tuple[int, ...], ends: bool, params: SamplingParams
    ) -> tuple[tuple[int, ...], Finish, str | None]:
        """Sample token by token as far as the parameters let it."""
        for n in range(1, len(ids) + 1):
            if ids[n - 1] in params.stop_token_ids:
                return ids[:n], Finish.STOP, None
            stop = self._stop_in(ids[:n], params.stop)
            if stop is not None:
                return ids[:n], Finish.STOP, stop
            if n == params.max_new_tokens and (n < len(ids) or ends):
                return ids[:n], Finish.LENGTH, None
        if ends:
            return (*ids, self.tokenizer.eos_token_id), Finish.EOS, None
        return ids, Finish.LENGTH, None

    def _stop_in(self, ids: tuple[int, ...], stops: tuple[str, ...]) -> str | None:
        if not stops:
            return None
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return next((stop for stop in stops if stop in text), None)
