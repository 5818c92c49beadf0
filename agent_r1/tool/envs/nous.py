"""Function calling in the format of Hermes and Qwen models.

The model writes ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, once or
several times, and ends its turn; the answers come back as ``<tool_response>`` blocks of a
user turn, as the chat templates of Qwen2.5, Qwen3 and Hermes 2/3 render tool messages.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from agent_r1.errors import ConfigError
from agent_r1.registry import nearest
from agent_r1.tool.base import BaseTool, StepResult, ToolResult
from agent_r1.tool.envs.tool_using import ToolUsingEnv
from agent_r1.tool.text import between, presentable

_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One ``<tool_call>``: a tool with its arguments, or what is wrong with it."""

    tool: BaseTool | None
    arguments: dict[str, Any]
    error: str = ""

    def refused(self) -> ToolResult:
        return ToolResult(f"Error: {self.error}", False)


class NousToolEnv(ToolUsingEnv):
    """Any number of tools by name, several calls per turn, run at the same time.

    There is no stop string: a model of this format ends its turn with its end-of-sequence
    token after the last call. The observation therefore opens the next turn, and asks for
    control tokens to be encoded as such; those in tool output are made harmless first.

    A call that cannot be understood (no JSON, an unknown tool, arguments that do not fit
    the schema) is answered with an error for the model to read. ``<tool_call>`` without an
    end is no call. Calls beyond ``max_calls`` in one turn are refused, so that a model
    gone astray starts no thousand of them. The episode is over with the first turn that
    calls nothing.

    ``turn_break`` and ``reopen`` are the chat markup around the tools' answers; subclasses
    for other chat formats replace them.
    """

    control_tokens = True
    turn_break: ClassVar[str] = "\n<|im_start|>user\n"
    reopen: ClassVar[str] = "<|im_end|>\n<|im_start|>assistant\n"

    def __init__(
        self,
        tools: Sequence[BaseTool],
        max_tool_response_length: int = 2048,
        max_calls: int = 8,
    ) -> None:
        super().__init__(tools, max_tool_response_length)
        self.max_calls = max_calls
        self.tool_map = {tool.name: tool for tool in tools}
        if not tools or "" in self.tool_map or len(self.tool_map) != len(tools):
            names = [tool.name for tool in tools]
            raise ConfigError(
                f"the nous environment calls tools by name and was given {names}: it needs at "
                "least one, each with a name of its own"
            )

    def step(self, raw_response: str) -> StepResult:
        calls = self.extract_tool_calls(raw_response)
        if not calls:
            return "", [], False
        self._remember_trajectory()
        with ThreadPoolExecutor(self.max_calls, "agent-r1-call") as pool:
            futures = [pool.submit(contextvars.copy_context().run, _run, c) for c in calls]
            return self._observe([future.result() for future in futures])

    async def astep(self, raw_response: str) -> StepResult:
        calls = self.extract_tool_calls(raw_response)
        if not calls:
            return "", [], False
        self._remember_trajectory()
        results = await asyncio.gather(*(_arun(call) for call in calls), return_exceptions=True)
        answers = [result for result in results if isinstance(result, ToolResult)]
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure
        return self._observe(answers)

    def _observe(self, results: Sequence[ToolResult]) -> StepResult:
        text = self.format_tool_response([result.content for result in results])
        return text, [result.success for result in results], True

    def extract_tool_calls(self, raw_response: str) -> list[ParsedCall]:
        """Every complete call of the turn, in order; what is wrong with one stands in it."""
        bodies = between(raw_response, "<tool_call>", "</tool_call>")[: self.max_calls + 1]
        calls = [self._parse(body) for body in bodies[: self.max_calls]]
        if len(bodies) > self.max_calls:
            refusal = f"at most {self.max_calls} calls are run in one turn; the rest were not run"
            calls.append(ParsedCall(None, {}, refusal))
        return calls

    def format_tool_response(self, tool_responses: list[str]) -> str:
        """The answers in order, each cut to ``max_tool_response_length``, as the next turn."""
        if not tool_responses:
            return ""
        blocks = [
            f"<tool_response>\n{presentable(text, self.max_tool_response_length, _TAGS)}"
            "\n</tool_response>"
            for text in tool_responses
        ]
        return self.turn_break + "\n".join(blocks) + self.reopen

    @property
    def announced_tools(self) -> list[dict[str, Any]]:
        return [tool.tool_description for tool in self.tools]

    def _parse(self, body: str) -> ParsedCall:
        try:
            call = json.loads(body)
        except (ValueError, RecursionError) as error:
            return ParsedCall(None, {}, f"the tool call is no valid JSON: {error}")
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return ParsedCall(None, {}, 'a tool call is {"name": "...", "arguments": {...}}')
        tool = self.tool_map.get(call["name"])
        if tool is None:
            known = list(self.tool_map)
            hint = nearest(call["name"], known)
            return ParsedCall(
                None, {}, f"no tool is called {call['name']!r}{hint}; there are: {', '.join(known)}"
            )
        arguments = _arguments(call.get("arguments", {}))
        if arguments is None:
            return ParsedCall(None, {}, f"the arguments of {tool.name!r} must be a JSON object")
        return ParsedCall(tool, arguments)


def _arguments(value: object) -> dict[str, Any] | None:
    """Arguments as an object; some models write the object as a string of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _run(call: ParsedCall) -> ToolResult:
    return call.tool.execute(call.arguments) if call.tool else call.refused()


async def _arun(call: ParsedCall) -> ToolResult:
    return await call.tool.aexecute(call.arguments) if call.tool else call.refused()
