"""Conversations with tool calls, as the model's chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.errors import DataError
from agent_r1.rollout.codec import Codec
from agent_r1.tool.text import neutralise


def chat_segments(trace: Trace, codec: Codec) -> tuple[str, tuple[Segment, ...]]:
    """The prompt as text, and what follows it as segments of one author each.

    The template writes every prefix of the conversation. What an assistant's message adds is the
    model's; what lies between it and the next generation prompt is the environment's. Control
    tokens that a tool's output spells are broken up first, as in a rollout.

    Raises:
        DataError: the template rewrites what came before (Qwen3 removes earlier thinking), so
            that no stretch of its text belongs to one author.
    """
    messages = [_harmless(message) for message in trace.chat]
    end = str(codec.tokenizer.eos_token or "")
    written, prompt = "", ""
    segments: list[Segment] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _text(codec, trace, messages[:i], asked=True)
        after = _text(codec, trace, messages[: i + 1], asked=False)
        if not before.startswith(written) or not after.startswith(before):
            raise DataError(
                "the chat template does not append: it writes earlier messages otherwise once "
                "later ones follow, so what the model wrote cannot be told. Split the conversation "
                "into one trace per answer, or give another template with "
                "model.custom_chat_template"
            )
        said = after[len(before) :]
        if end and end in said:
            said = said[: said.rindex(end) + len(end)]
        if segments:
            segments.append(Segment(Author.TOOL, before[len(written) :]))
        else:
            prompt = before
        segments.append(Segment(Author.MODEL, said))
        written = before + said
    last = segments[-1].text.removesuffix(end) if end else segments[-1].text.rstrip("\n")
    return prompt, (*segments[:-1], Segment(Author.MODEL, last))


def _text(codec: Codec, trace: Trace, messages: Sequence[Any], *, asked: bool) -> str:
    return codec.template_text(messages, add_generation_prompt=asked, tools=trace.tools)


def _harmless(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] != "tool":
        return dict(message)
    content = message["content"].strip()
    if content.startswith("<tool_response>") and content.endswith("</tool_response>"):
        content = content.removeprefix("<tool_response>").removesuffix("</tool_response>").strip()
    return {**message, "content": neutralise(content, ("<tool_response>", "</tool_response>"))}
