"""What a model sees of an episode, as ids: the opening, each observation, a context in its place.

Text observations are encoded by themselves and appended. Messages are written by the model's
own chat template: behind a sampled answer only what is new is rendered, so that ids which
were sampled stay what they are and contexts only ever grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent_r1.errors import MessageError, TemplateError
from agent_r1.messages import read_messages
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import ChatRenderer, in_words
from agent_r1.rollout.opening import opened, with_system
from agent_r1.tool.protocol import Observation, Start
from agent_r1.types import Message, Task

Tools = Sequence[Mapping[str, Any]]


class ContextWriter:
    """Turns what environments say into ids, for one tokenizer."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._made: ChatRenderer | None = None

    def check(self) -> None:
        """Fail early where no message could be put behind an answer.

        Ids only ever grow because what is appended is what the template itself writes there.
        Raises :class:`TemplateError`.
        """
        if getattr(self._codec.tokenizer, "chat_template", None) is None:
            return
        if not self._renderer.keeps(("user",)):
            raise TemplateError(
                "this model's chat template cannot write a user's message behind an answer, which "
                "environments that answer with messages need; give another one with "
                "actor_rollout_ref.model.custom_chat_template=FILE"
            )

    def opening(self, task: Task, start: Start) -> tuple[int, ...]:
        """Ids of the first context. Raises :class:`TemplateError`."""
        tools, prompt = start.tools, task.prompt
        if start.messages is None and not tools and not start.system and _is_plain(prompt):
            return self._codec.render(task)
        whole = opened(prompt, start)
        if isinstance(whole, str):
            return self._in_words(task, str(prompt), start)
        return self._rendered(with_system(whole, start.system), tools)

    def _in_words(self, task: Task, prompt: str, start: Start) -> tuple[int, ...]:
        """A plain opening. Control tokens that the environment's part spells are characters."""
        words = filter(None, [start.system, in_words(start.tools) if start.tools else ""])
        before, said = "\n\n".join(words), str(start.messages or "")
        before += "\n\n" if before and (prompt or said) else ""
        if not self._codec.spells_control(before) and not self._codec.spells_control(said):
            return self._codec.render(replace(task, prompt=f"{before}{prompt}{said}"))
        ids = self._codec.render(replace(task, prompt=""))
        for text, plain in ((before, True), (prompt, False), (said, True)):
            ids += self._codec.encode_text(text, plain=plain)
        return ids

    def replacement(
        self, context: Observation, tools: Tools, *, control_tokens: bool
    ) -> tuple[int, ...]:
        """Ids of a context that takes the place of the one before."""
        if not isinstance(context, str):
            return self._rendered(context, tools)
        start = self._codec.render(Task("", ""))
        return start + self._codec.encode_text(context, plain=not control_tokens)

    def observation(
        self, before: Sequence[int], observation: Observation, tools: Tools, *, control_tokens: bool
    ) -> tuple[int, ...]:
        """Ids to append to ``before``, which ends with a sampled action."""
        if isinstance(observation, str):
            return self._codec.encode_observation(observation, control_tokens=control_tokens)
        try:
            new = read_messages(observation, strict=True)
            self._renderer.check(new)
        except MessageError as error:
            raise TemplateError(f"an observation of the environment: {error}") from error
        ids = self._renderer.extension(before, new, tools)
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
            given = read_messages(messages, strict=True)
            self._renderer.check(given)
            return self._renderer.prompt(given, tools)
        except MessageError as error:
            raise TemplateError(str(error)) from error


def _is_plain(prompt: tuple[Message, ...] | str) -> bool:
    """Whether the template is given nothing but roles and text."""
    return isinstance(prompt, str) or not any(
        message["role"] == "tool" or set(message) - {"role", "content"} for message in prompt
    )
