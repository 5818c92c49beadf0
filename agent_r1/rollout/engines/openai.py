"""An engine for evaluation and chat: any server that speaks OpenAI's protocol.

It serves evaluation and chat. It cannot serve training: a server neither tells the
log-probabilities of the distribution it sampled from nor takes new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from agent_r1.config.policy import ServerConfig
from agent_r1.errors import EngineError
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engine import OnTokens
from agent_r1.rollout.engines.openai_http import Retryable, ServerClient
from agent_r1.rollout.engines.openai_text import CharacterTokenizer, Piece, read_prompt
from agent_r1.types import Completion, Finish, SamplingParams

UNLIMITED = 1 << 40
"""``max_model_len`` where only the server knows its context."""


class OpenAIEngine:
    """Implements ``StreamingEngine`` by ``/completions`` or ``/chat/completions``.

    Answers are streamed and stop strings are looked for here, whatever the server makes of
    them: the request is closed the moment one is complete. So every server stops alike, and
    it is known which string it was; what OpenAI's protocol tells of the end is the same
    word for a stop string and for the model's own end.

    ``config.api`` is one of the four (``auto`` is decided by whoever knows the tokenizer).
    ``tokenizer`` is the model's own, or a :class:`CharacterTokenizer` where there is none.
    With the former, ``/completions`` gets and returns token ids as far as the server knows
    how (vLLM is asked for them); text that comes without ids is encoded here.
    Log-probabilities are None.
    """

    def __init__(
        self,
        config: ServerConfig,
        tokenizer: Any,
        *,
        max_model_len: int = UNLIMITED,
        client: ServerClient | None = None,
    ) -> None:
        self._config = config
        self._codec = Codec(tokenizer)
        self._max_model_len = max_model_len
        self._chat = config.api.startswith("chat")
        self._characters = isinstance(tokenizer, CharacterTokenizer)
        self._client = client or ServerClient(config)
        self._model = self._client.model_name()

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def model(self) -> str:
        """The name that requests carry."""
        return self._model

    def open(self, request_ids: Sequence[str]) -> None:
        """Nothing to prepare."""

    def release(self, request_id: str) -> None:
        """Nothing is kept between turns."""

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> Completion:
        return await self._complete(prompt_ids, params, None)

    async def stream(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        request_id: str,
        on_tokens: OnTokens,
    ) -> Completion:
        return await self._complete(prompt_ids, params, on_tokens)

    async def load_weights(self, source: Any, version: int, *, keep_cache: bool = False) -> int:
        raise EngineError(
            "a server keeps its own weights; train with actor_rollout_ref.rollout.name=embedded"
        )

    async def close(self) -> None:
        await self._client.close()

    async def _complete(
        self, prompt_ids: Sequence[int], params: SamplingParams, on_tokens: OnTokens | None
    ) -> Completion:
        """One answer, asked for again where that may help and nobody has seen a part of it."""
        body = self._body(prompt_ids, params)
        attempt = 0
        while True:
            answer = _Answer(params.stop)
            try:
                await self._receive(body, answer, on_tokens)
                return self._completion(answer)
            except Retryable as failure:
                if on_tokens is not None and answer.text:
                    raise
                await self._client.pause(attempt, failure)
                attempt += 1

    async def _receive(
        self, body: dict[str, Any], answer: _Answer, on_tokens: OnTokens | None
    ) -> None:
        path = "chat/completions" if self._chat else "completions"
        async with aclosing(self._client.events(path, body)) as events:
            async for event in events:
                start = len(answer.text)
                answer.take(event)
                if on_tokens is not None and len(answer.text) > start:
                    on_tokens(self._codec.encode_text(answer.text[start:]))
                if answer.stop is not None:
                    return
        answer.close()

    def _completion(self, answer: _Answer) -> Completion:
        ids = answer.token_ids
        if self._characters or len(ids) < answer.pieces:
            ids = list(self._codec.encode_text(answer.text))
        elif answer.stop is not None:
            ids = self._up_to(answer.stop, ids)
        counted = None
        if self._characters:
            counted = answer.pieces if answer.counted is None else answer.counted
        return Completion(tuple(ids), None, answer.finish, stop=answer.stop, counted=counted)

    def _up_to(self, stop: str, ids: list[int]) -> list[int]:
        """Without the tokens behind the stop string: one event may carry several tokens."""
        while stop in self._codec.decode(ids[:-1]):
            ids = ids[:-1]
        return ids

    # --- the request ---------------------------------------------------------------------

    def _body(self, prompt_ids: Sequence[int], params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed & 0x7FFFFFFF,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if params.top_k:
            body["top_k"] = params.top_k
        if self._client.software == "vllm" and not (self._chat or self._characters):
            body["return_token_ids"] = True
        if params.stop_token_ids:
            body["stop_token_ids"] = list(params.stop_token_ids)
        body |= self._messages(prompt_ids) if self._chat else {"prompt": self._prompt(prompt_ids)}
        body |= self._config.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _prompt(self, ids: Sequence[int]) -> str | list[int]:
        if self._config.api == "completions" and not self._characters:
            return list(ids)
        # The server puts its own beginning-of-sequence token before a text.
        tokenizer = self._codec.tokenizer
        begin = getattr(tokenizer, "bos_token_id", None)
        if begin is not None and ids and ids[0] == begin:
            ids = ids[1:]
        text: str = tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _messages(self, ids: Sequence[int]) -> dict[str, Any]:
        messages, pieces = read_prompt(ids)
        if not pieces:
            return {"messages": messages}
        if self._config.api == "chat_turns":
            return {"messages": [*messages, *map(_as_message, pieces)]}
        text = "".join(piece.text for piece in pieces)
        return {
            "messages": [*messages, {"role": "assistant", "content": text}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        }


def _as_message(piece: Piece) -> dict[str, str]:
    return {"role": "user" if piece.from_tool else "assistant", "content": piece.text}


@dataclass(slots=True)
class _Answer:
    """What has arrived of one answer."""

    stops: tuple[str, ...]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: int = 0
    """Events with text: about the number of tokens, where the server does not tell it."""
    counted: int | None = None
    reason: str | None = None
    stop: str | None = None

    @property
    def finish(self) -> Finish:
        if self.stop is not None:
            return Finish.STOP
        return Finish.LENGTH if self.reason == "length" else Finish.EOS

    def take(self, event: dict[str, Any]) -> None:
        usage = event.get("usage") or {}
        self.counted = usage.get("completion_tokens", self.counted)
        for choice in event.get("choices") or ():
            piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            self.reason = choice.get("finish_reason") or self.reason
            self.token_ids += choice.get("token_ids") or ()
            self.pieces += bool(piece)
            self._append(piece)
            said = choice.get("stop_reason")
            if self.stop is None and said in self.stops:  # the server cut it off itself
                self.text += said
                self.stop = said

    def close(self) -> None:
        """The stream is at its end; it must have said why."""
        if self.reason is None:
            raise Retryable("the server's answer broke off")
        if self.reason == "content_filter":
            raise EngineError("the server withheld its answer (content_filter)")

    def _append(self, piece: str) -> None:
        """Add text up to the first stop string that is complete, its end included."""
        if not piece or self.stop is not None:
            return
        reach = max(map(len, self.stops), default=1) - 1
        begin = max(0, len(self.text) - reach)
        self.text += piece
        ends = [
            (at + len(stop), stop)
            for stop in self.stops
            if stop and (at := self.text.find(stop, begin)) >= 0
        ]
        if ends:
            end, self.stop = min(ends, key=lambda found: found[0])
            self.text = self.text[:end]
