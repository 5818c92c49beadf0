"""What one agent did through the endpoint: requests as turns of a trajectory.

Every answered request is a node. A request that repeats the messages of a node with its
answer and goes on continues that node's ids; any other begins anew. So the nodes are trees,
and a path of first continuations is a segment: one token sequence to train on. Whatever goes
on from the same answer a second time (a retry, a branch, sub-agents that share a beginning)
begins a further segment, in which what came before is context and not trained on again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from agent_r1.errors import AgentR1Error, ContextExceeded, EngineError
from agent_r1.messages import ChatMessage
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.engine import Engine, StreamingEngine
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.rollout.stream import TextStream
from agent_r1.types import Completion, Finish, Outcome, SamplingParams, ToolCall, Turn

Tools: TypeAlias = tuple[Mapping[str, Any], ...]
OnText = Callable[[str], None]


class SessionOver(AgentR1Error):
    """The trajectory has used up a limit, or has ended; no further request is answered."""

    def __init__(self, message: str, outcome: Outcome | None) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants besides its context."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    """Temperature and top_p count only where the session says so; a run samples as configured."""


@dataclass(slots=True, eq=False)
class Node:
    """One answered request."""

    prompt_ids: tuple[int, ...]
    segment: int
    completion: Completion | None = None
    text: str = ""
    plain: str | None = None
    """Prompt and answer as text, of a request that gave its prompt as text."""
    observation_ids: tuple[int, ...] = ()
    """What the continuation in the same segment put behind the answer."""
    results: int = 0
    """Results of tools among that."""
    continued: bool = False
    started: float = 0.0
    answered: float = 0.0
    away: float = 0.0
    """Seconds between the answer and the continuation."""

    @property
    def context(self) -> tuple[int, ...]:
        assert self.completion is not None
        return self.prompt_ids + self.completion.token_ids


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with what the protocol tells of it."""

    node: Node
    message: ChatMessage
    completion: Completion
    text: str


@dataclass(slots=True)
class Session:
    """The conversation of one trajectory with the engine, in as many segments as it takes.

    Requests of one session may run at the same time. ``obey_sampling``: temperature and
    top_p of requests count, which is right for serving and wrong for training. ``keep``
    bounds the answers that can be continued (None: all of them).
    """

    id: str
    engine: Engine
    codec: Codec
    renderer: ChatRenderer
    limits: LoopLimits
    sampling: Sampling
    obey_sampling: bool = False
    keep: int | None = None
    used: int = 0
    """Response tokens so far, the model's and those put between its turns."""
    asked: int = 0
    responses: dict[str, tuple[ChatMessage, ...]] = field(default_factory=dict)
    """Whole conversations by the names of answers that ``/v1/responses`` gave."""
    over: SessionOver | None = None
    failure: EngineError | None = None
    _segments: dict[int, list[Node]] = field(default_factory=dict)
    _begun: int = 0
    _known: dict[bytes, Node] = field(default_factory=dict)

    # --- requests -----------------------------------------------------------------------

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Tools,
        ask: Ask,
        on_text: OnText | None = None,
    ) -> Answer:
        """Answer a chat. ``on_text`` sees the answer's content as it is sampled.

        Raises:
            MessageError: the template refuses the messages.
            SessionOver: a limit of the trajectory is used up.
            EngineError: the engine failed, which fails the trajectory.
        """
        self._admit()
        keys = _prefix_keys(messages, tools)
        for length in range(len(messages) - 1, 0, -1):
            parent = self._known.get(keys[length])
            new = messages[length:]
            if parent is None:
                continue
            suffix = self.renderer.extension(parent.context, new, tools)
            if suffix is not None:
                results = sum(message.role == "tool" for message in new)
                node = self._begin(parent, suffix, results)
                break
        else:
            node = self._begin(None, self.renderer.prompt(messages, tools), 0)
        answer = await self._sample(node, ask, tools, on_text)
        self._remember(_next_key(keys[-1], answer.message), node)
        if answer.completion.stop is not None:  # agents put the stop string back that they miss
            self._remember(_next_key(keys[-1], ChatMessage("assistant", node.text)), node)
        return answer

    def keep_response(self, name: str, messages: tuple[ChatMessage, ...]) -> None:
        """Remember a conversation under the name that ``/v1/responses`` gave its last answer."""
        self.responses[name] = messages
        while self.keep is not None and len(self.responses) > self.keep:
            self.responses.pop(next(iter(self.responses)))

    async def complete(
        self, prompt: str | Sequence[int], ask: Ask, on_text: OnText | None = None
    ) -> Answer:
        """Answer a plain prompt, text or ids, by continuing it.

        A text or ids that repeat the prompt and the answer of an earlier request continue its
        ids. Errors as of :meth:`chat`.
        """
        self._admit()
        node = self._continued(prompt)
        if node is None:
            given = self.codec.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            node = self._begin(None, tuple(given), 0)
        answer = await self._sample(node, ask, (), on_text)
        if isinstance(prompt, str):
            node.plain = prompt + answer.text
        self._remember(repr(("plain", node.context)).encode(), node)
        return answer

    def _continued(self, prompt: str | Sequence[int]) -> Node | None:
        """A node that goes on from the longest answer that the prompt repeats, if it does."""
        best: tuple[int, Node, tuple[int, ...]] | None = None
        for node in self._known.values():
            if isinstance(prompt, str):
                if node.plain is None or not prompt.startswith(node.plain):
                    continue
                suffix = self.codec.encode_text(prompt[len(node.plain) :])
            else:
                if tuple(prompt[: len(node.context)]) != node.context:
                    continue
                suffix = tuple(prompt[len(node.context) :])
            if best is None or len(node.context) > best[0]:
                best = (len(node.context), node, suffix)
        return None if best is None else self._begin(best[1], best[2], 0)

    # --- nodes --------------------------------------------------------------------------

    def _admit(self) -> None:
        if self.over is not None:
            raise self.over
        if self.asked >= self.limits.max_turns:
            raise self._end(Outcome.TURN_LIMIT, f"{self.asked} requests (tool.max_turns)")

    def _end(self, outcome: Outcome, what: str) -> SessionOver:
        self.over = SessionOver(f"this trajectory has used up its {what}", outcome)
        return self.over

    def close(self) -> None:
        """Answer nothing any more, and forget the segments in the engine."""
        self.over = self.over or SessionOver("this trajectory has ended", None)
        for number in self._segments:
            self.engine.release(self._request_id(number))

    def _request_id(self, segment: int) -> str:
        return f"{self.id}#{segment}"

    def _begin(self, parent: Node | None, ids: tuple[int, ...], results: int) -> Node:
        """A node behind ``parent``, or one that begins anew with ``ids``."""
        now = time.perf_counter()
        self.asked += 1
        prompt = ids if parent is None else parent.context + ids
        if parent is not None and not parent.continued:
            parent.continued = True
            parent.observation_ids, parent.results = ids, results
            parent.away = now - parent.answered
            self.used += len(ids)
            node = Node(prompt, parent.segment, started=now)
        else:
            node = Node(prompt, self._begun, started=now)
            self._begun += 1
        self._segments.setdefault(node.segment, []).append(node)
        return node

    def _forget(self, node: Node) -> None:
        """Take a request back that was not answered: it is no action of the policy."""
        self.asked -= 1
        members = self._segments[node.segment]
        members.remove(node)
        if members:
            before = members[-1]
            self.used -= len(before.observation_ids)
            before.continued, before.observation_ids, before.results = False, (), 0

    def _remember(self, key: bytes, node: Node) -> None:
        """Let the answer be continued; of equal ones the newest."""
        self._known.pop(key, None)
        self._known[key] = node
        while self.keep is not None and len(self._known) > self.keep:
            old = self._known.pop(next(iter(self._known)))
            members = self._segments.get(old.segment, [])
            if old in members:
                members.remove(old)
            if not members and self._segments.pop(old.segment, None) is not None:
                self.engine.release(self._request_id(old.segment))

    # --- sampling -----------------------------------------------------------------------

    async def _sample(self, node: Node, ask: Ask, tools: Tools, on_text: OnText | None) -> Answer:
        try:
            budget, exhausted = self._budget(node, ask)
            params = self._params(ask, budget)
            hold = ("<tool_call>",) if tools else ()
            shown = None if tools and self.renderer.parses else on_text
            completion = await self._generate(node, params, shown, hold)
        except ContextExceeded as failure:
            self._forget(node)
            raise self._end(Outcome.CONTEXT, f"context ({failure})") from failure
        except EngineError as failure:
            self._forget(node)
            self.failure = failure
            raise
        except BaseException:  # cancelled because the agent hung up, or no budget was left
            self._forget(node)
            raise
        node.completion = completion
        node.text = self.codec.text_of(completion)
        node.answered = time.perf_counter()
        self.used += completion.length
        if completion.finish is Finish.LENGTH and exhausted is not None:
            self._end(exhausted, "tokens")
        visible = node.text
        if completion.stop is not None:
            visible = visible.removesuffix(completion.stop)
        message = self.renderer.reply(visible, node.prompt_ids, tools)
        return Answer(node, message, completion, visible)

    def _budget(self, node: Node, ask: Ask) -> tuple[int, Outcome | None]:
        """Tokens of the answer, and what running out of them means for the trajectory."""
        context = self.engine.max_model_len - len(node.prompt_ids)
        response = self.limits.max_response_length - self.used
        if context < 1:
            raise self._end(
                Outcome.CONTEXT,
                f"context: the prompt has {len(node.prompt_ids)} tokens and the model's window "
                f"{self.engine.max_model_len} (rollout.max_model_len)",
            )
        if response < 1:
            raise self._end(Outcome.LENGTH, "response tokens (data.max_response_length)")
        wanted = [n for n in (ask.max_tokens, self.limits.max_tokens_per_turn) if n is not None]
        own = min(wanted, default=response)
        if own <= min(context, response):
            return own, None  # the agent or its turn's limit stopped it, and it may go on
        return min(context, response), Outcome.CONTEXT if context < response else Outcome.LENGTH

    def _params(self, ask: Ask, budget: int) -> SamplingParams:
        sampling = self.sampling
        if self.obey_sampling:
            sampling = replace(
                sampling,
                temperature=sampling.temperature if ask.temperature is None else ask.temperature,
                top_p=sampling.top_p if ask.top_p is None else ask.top_p,
            )
        params = sampling.params(budget, self.id, self.asked)
        return replace(params, stop=tuple(dict.fromkeys((*params.stop, *ask.stop))))

    async def _generate(
        self, node: Node, params: SamplingParams, on_text: OnText | None, hold: tuple[str, ...]
    ) -> Completion:
        name = self._request_id(node.segment)
        if on_text is None or not isinstance(self.engine, StreamingEngine):
            return await self.engine.generate(node.prompt_ids, params, name)
        shown = TextStream(self.codec, (*params.stop, *hold), _without(on_text, params.stop, hold))
        return await self.engine.stream(node.prompt_ids, params, name, shown.feed)

    # --- what it was --------------------------------------------------------------------

    @property
    def answers(self) -> int:
        """How many requests were answered."""
        return sum(map(len, self._answered()))

    def turns(self) -> tuple[Turn, ...]:
        """The answers as turns, segment by segment; the one that ended last comes last."""
        ordered = sorted(self._answered(), key=lambda members: members[-1].answered)
        return tuple(self._turn(node) for members in ordered for node in members)

    def _answered(self) -> list[list[Node]]:
        found = (
            [node for node in members if node.completion is not None]
            for members in self._segments.values()
        )
        return [members for members in found if members]

    def _turn(self, node: Node) -> Turn:
        assert node.completion is not None
        shown = self.codec.decode(node.observation_ids) if node.observation_ids else ""
        calls = (ToolCall(True, node.away / max(node.results, 1)),) * node.results
        return Turn(
            prompt_ids=node.prompt_ids,
            completion=node.completion,
            text=node.text,
            observation_ids=node.observation_ids,
            observation_text=shown,
            tool_calls=calls,
            generate_seconds=node.answered - node.started,
            tool_seconds=node.away,
        )


def _prefix_keys(messages: Sequence[ChatMessage], tools: Tools) -> list[bytes]:
    """``keys[n]`` stands for the tools and the first ``n`` messages."""
    keys = [hashlib.blake2b(repr(tools).encode(), digest_size=16).digest()]
    for message in messages:
        keys.append(_next_key(keys[-1], message))
    return keys


def _next_key(key: bytes, message: ChatMessage) -> bytes:
    return hashlib.blake2b(key + repr(message.key).encode(), digest_size=16).digest()


def _without(show: OnText, stops: Sequence[str], hold: Sequence[str]) -> OnText:
    """Pieces without the stop string or the mark of a call that ends them."""

    def shown(piece: str) -> None:
        for end in (*stops, *hold):
            piece = piece.removesuffix(end)
        if piece:
            show(piece)

    return shown
