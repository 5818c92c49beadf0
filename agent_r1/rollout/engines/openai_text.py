"""Prompts for a server that keeps its tokenizer to itself.

An agent loop speaks token ids. Where no tokenizer is at hand, a token is a character, and
ids above Unicode's last mark where a message or a tool's answer begins and ends: marks
that no text can spell. :func:`read_prompt` turns such a prompt into messages again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent_r1.errors import TemplateError
from agent_r1.rollout.codec import Codec
from agent_r1.types import Task

_UNICODE = 0x110000
_MESSAGE, _CONTENT, _END, _TOOL, _TOOL_END = range(_UNICODE, _UNICODE + 5)


class CharacterTokenizer:
    """As much of a tokenizer as :class:`Codec` asks for."""

    eos_token_id = None
    pad_token_id = None

    def __init__(self, *, chat: bool) -> None:
        self.chat_template = "messages" if chat else None

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Iterable[int], **_: Any) -> str:
        return "".join(chr(index) for index in ids if index < _UNICODE)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        **_: Any,
    ) -> list[int]:
        if self.chat_template is None:
            raise TemplateError(
                "api=completions sends rendered text, and no tokenizer renders these messages: "
                "give actor_rollout_ref.model.path (a folder with tokenizer files), or use "
                "actor_rollout_ref.rollout.server.api=chat"
            )
        ids: list[int] = []
        for message in messages:
            ids += self._opening(message["role"])
            ids += [*self.encode(message["content"]), _END]
        return ids + self._opening("assistant") if add_generation_prompt else ids

    def _opening(self, role: str) -> list[int]:
        return [_MESSAGE, *self.encode(role), _CONTENT]


class MessageCodec(Codec):
    """A codec whose ids are characters and marks; plain prompts become a user's message."""

    def __init__(self) -> None:
        super().__init__(CharacterTokenizer(chat=True))

    def render(self, task: Task) -> tuple[int, ...]:
        prompt = task.prompt
        if isinstance(prompt, str):
            prompt = ({"role": "user", "content": prompt},)
        return super().render(replace(task, prompt=prompt))

    def encode_observation(self, text: str, *, control_tokens: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        return (_TOOL, *self.tokenizer.encode(text), _TOOL_END)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the open assistant message: the model's words, or a tool's."""

    text: str
    from_tool: bool


def read_prompt(ids: Sequence[int]) -> tuple[list[dict[str, str]], list[Piece]]:
    """The finished messages of a prompt, and what the assistant message holds so far."""
    messages: list[dict[str, str]] = []
    pieces: list[Piece] = []
    role, text = "", ""
    for index in ids:
        if index == _CONTENT:
            role, text = text, ""
        elif index == _END:
            messages.append({"role": role, "content": text})
            text = ""
        elif index in (_TOOL, _TOOL_END):
            pieces.append(Piece(text, from_tool=index == _TOOL_END))
            text = ""
        elif index < _UNICODE:
            text += chr(index)
    pieces.append(Piece(text, from_tool=False))
    return messages, [piece for piece in pieces if piece.text]
