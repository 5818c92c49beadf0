"""How the model families write calls of tools, as transformers reads them.

A tokenizer may say so itself (``response_template``); few that are published do. These
descriptions are for the others, in transformers' own form, so that its parser does the reading;
Hermes and Qwen's ``<tool_call>`` with JSON is what :mod:`.messages` reads without one. A family
is recognised by what its chat template writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CALL = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}


def _template(anchor: str, calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Calls, and text that reaches to the end."""
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": anchor,
        "fields": {"tool_calls": calls | {"repeats": True, "transform": _CALL}, **fields},
    }


def _tagged(name: str, value: str) -> dict[str, Any]:
    """One call whose arguments have an element each; their types are those of the schema."""
    return {
        "open_pattern": name,
        "close_pattern": r"</tool_call>\s*",
        "content": "xml-inline",
        "content_args": {"tag_pattern": value, "value_parser": {"name": "text"}},
    }


_TEXT: dict[str, Any] = {"content": {}}
_FINAL: dict[str, Any] = {
    "thinking": {"open": "<|channel|>analysis<|message|>", "close_pattern": r"<\|end\|>|$"},
    "content": {"open": "<|channel|>final<|message|>", "close_pattern": r"<\|return\|>|$"},
}

FAMILIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "glm": (
        ("<arg_key>",),
        _template(
            "<|assistant|>",
            _tagged(
                r"<tool_call>(?P<name>[^\s<]+)",
                r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
            ),
            **_TEXT,
        ),
    ),
    "qwen3_5": (
        ("<function=", "<parameter="),
        _template(
            "<|im_start|>assistant\n",
            _tagged(
                r"<tool_call>\s*<function=(?P<name>[^\s>]+)>",
                r"<parameter=(?P<key>[^>]+)>\n?(?P<value>.*?)\n?</parameter>",
            ),
            **_TEXT,
        ),
    ),
    "gpt_oss": (
        ("<|channel|>", "functions."),
        _template(
            "<|start|>assistant",
            {
                "open_pattern": (
                    r"(?:<\|channel\|>commentary)?\s*to=functions\.(?P<name>[^\s<]+)"
                    r"(?:<\|channel\|>commentary)?\s*(?:<\|constrain\|>)?\s*json<\|message\|>"
                ),
                "close_pattern": r"<\|call\|>|$",
                "content": "json",
            },
            **_FINAL,
        ),
    ),
    "gemma4": (
        ("<|tool_call>call:",),
        _template(
            "<|turn>model\n",
            {
                "open_pattern": r"<\|tool_call>call:(?P<name>[^\s{]+)",
                "close_pattern": r"<tool_call\|>",
                "content": "json",
                "content_args": {"string_delims": [['<|"|>', '<|"|>']], "unquoted_keys": True},
            },
            **_TEXT,
        ),
    ),
    "deepseek_v3": (
        ("<｜tool▁call▁begin｜>",),  # noqa: RUF001 (their bars are wide ones)
        _template(
            "<｜Assistant｜>",  # noqa: RUF001
            {
                "open_pattern": (
                    r"(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>"  # noqa: RUF001
                    r"function<｜tool▁sep｜>(?P<name>\S+)\s*```json\s*"  # noqa: RUF001
                ),
                "close_pattern": (
                    r"\s*```<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?"  # noqa: RUF001
                ),
                "content": "json",
            },
            **_TEXT,
        ),
    ),
    "llama3": (
        ("<|eot_id|>", '"parameters": '),
        _template(
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            {
                "open_pattern": (
                    r'(?:<\|python_tag\|>)?\{"name":\s*"(?P<name>[^"]+)",\s*"parameters":\s*'
                ),
                "close_pattern": r"\}\s*(?:<\|eom_id\|>|<\|eot_id\|>|$)",
                "content": "json",
            },
            **_TEXT,
        ),
    ),
    "mistral": (
        ("[TOOL_CALLS]",),
        {
            "defaults": {"role": "assistant"},
            "start_anchor": "[/INST]",
            "fields": {
                "tool_calls": {
                    "open_pattern": r"\[TOOL_CALLS\]\s*",
                    "close_pattern": r"</s>|$",
                    "content": "json",
                },
                **_TEXT,
            },
        },
    ),
}
"""By name: what its chat template has to contain, and transformers' ``response_template``."""


def family_template(tokenizer: Any) -> dict[str, Any] | None:
    """How calls of this tokenizer's family are read; None for Hermes and Qwen's form."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for marks, found in FAMILIES.values():
        if all(mark in template for mark in marks):
            return found
    return None


def is_whole(text: str, calls: int, template: Mapping[str, Any]) -> bool:
    """Whether ``text`` closes as many calls as were read; transformers reads a cut one too."""
    return len(re.findall(template["fields"]["tool_calls"]["close_pattern"], text)) >= calls
