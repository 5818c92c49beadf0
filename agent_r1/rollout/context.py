"""What a model sees of an episode, as ids: the opening, each observation, a context in its place.

Text observations are encoded by themselves and appended. Messages are written by the model's
own chat template: behind a sampled answer only what is new is rendered, so that ids which
were sampled stay what they are and contexts only ever grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent_r1.errors import TemplateError
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import (
    BadRequest,
    ChatMessage,
    ChatRenderer,
    in_words,
    read_messages,
)
from agent_r1.tool.protocol import Observation, Start
from agent_r1.types import Message, Task

Tools = Sequence[Mapping[str, Any]]


class ContextWriter:
    """Turns what environments say into ids, for one tokenizer."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._made: ChatRenderer | None = None

    def opening(self, task: Task, start: Start) -> tuple[int, ...]:
        """Ids of the first context. Raises :class:`TemplateError`."""
        if start.messages is None and not start.tools and not start.system:
            return self._codec.render(task)
        prompt = _opened(task.prompt, start)
        if isinstance(prompt, str):
            words = [start.system, in_words(start.tools) if start.tools else "", prompt]
            text = "\n\n".join(filter(None, words))
            return self._codec.render(replace(task, prompt=text))
        return self._rendered(_with_system(prompt, start.system), start.tools)

    def replacement(self, context: Observation, tools: Tools) -> tuple[int, ...]:
        """Ids of a context that takes the place of the one before."""
        if isinstance(context, str):
            return tuple(self._codec.tokenizer.encode(context, add_special_tokens=True))
        return self._rendered(context, tools)

    def observation(
        self, before: Sequence[int], observation: Observation, tools: Tools, *, control_tokens: bool
    ) -> tuple[int, ...]:
        """Ids to append to ``before``, which ends with a sampled action."""
        if isinstance(observation, str):
            return self._codec.encode_observation(observation, control_tokens=control_tokens)
        ids = self._renderer.extension(before, _read(observation), tools)
        if ids is None:
            raise TemplateError(
                f"the chat template cannot put {list(observation)!r:.300} behind an answer; use "
                "messages of roles that it knows there (user, maybe tool)"
            )
        return ids

    @property
    def _renderer(self) -> ChatRenderer:
        if self._made is None:
            self._made = ChatRenderer(self._codec)
        return self._made

    def _rendered(self, messages: Sequence[Message], tools: Tools) -> tuple[int, ...]:
        try:
            return self._renderer.prompt(_read(messages), tools)
        except BadRequest as error:
            raise TemplateError(str(error)) from error


def _read(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    try:
        return read_messages(list(messages))
    except BadRequest as error:
        raise TemplateError(f"messages of an environment: {error}") from error


def _opened(prompt: tuple[Message, ...] | str, start: Start) -> tuple[Message, ...] | str:
    """The prompt with what the environment says at first."""
    said = start.messages
    if said is None:
        return prompt
    if not isinstance(said, str):
        return tuple(said)
    if isinstance(prompt, str):
        return prompt + said
    if prompt and prompt[-1].get("role") == "user" and isinstance(prompt[-1]["content"], str):
        joined = "\n\n".join(filter(None, (prompt[-1]["content"], said)))
        return (*prompt[:-1], {**prompt[-1], "content": joined})
    return (*prompt, {"role": "user", "content": said})


def _with_system(prompt: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if not system:
        return prompt
    if prompt and prompt[0].get("role") == "system":
        joined = f"{prompt[0]['content']}\n\n{system}"
        return ({"role": "system", "content": joined}, *prompt[1:])
    return ({"role": "system", "content": system}, *prompt)
