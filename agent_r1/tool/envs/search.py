"""Search-R1: the model writes ``<search>``, passages come back between ``<information>`` tags.

The format is that of "Search-R1: Training LLMs to Reason and Leverage Search Engines with
Reinforcement Learning" (arXiv 2503.09516).
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_r1.errors import ConfigError
from agent_r1.tool.base import BaseTool, StepResult, ToolResult
from agent_r1.tool.envs.tool_using import ToolUsingEnv
from agent_r1.tool.text import presentable

_OPEN, _CLOSE = "<search>", "</search>"
_ANSWER = "</answer>"
_TAGS = (
    *("<information>", "</information>", _OPEN, _CLOSE),
    *("<answer>", _ANSWER, "<think>", "</think>"),
)


class SearchR1Env(ToolUsingEnv):
    """Runs the query between ``<search>`` and ``</search>``; ``</answer>`` ends the episode.

    Generation stops at either. Where an engine wrote on, the last complete query is run. A
    turn with neither a query nor an answer ends the episode too, unless ``remind`` is set:
    then the model is told once per turn how to go on, which costs it a turn.

    Args:
        tools: one tool that takes ``query``, such as ``search``.
        max_tool_response_length: characters of the passages that are shown.
        remind: answer a turn without query and answer with a reminder of the format.
    """

    stop_strings = (_CLOSE, _ANSWER)

    def __init__(
        self,
        tools: Sequence[BaseTool],
        max_tool_response_length: int = 2048,
        remind: bool = False,
    ) -> None:
        super().__init__(tools, max_tool_response_length)
        if len(tools) != 1 or "query" not in tools[0].parameters.get("properties", {}):
            raise ConfigError(
                "the search_r1 environment works with exactly one tool that takes a 'query', not "
                f"{[tool.name for tool in tools]}: set tool.tools=[search]"
            )
        self.tool = tools[0]
        self._remind = remind

    def step(self, raw_response: str) -> StepResult:
        queries = self.extract_tool_calls(raw_response)
        if not queries:
            return self._without_a_query(raw_response)
        self._remember_trajectory()
        return self._observe(self.tool.execute({"query": queries[0]}))

    async def astep(self, raw_response: str) -> StepResult:
        queries = self.extract_tool_calls(raw_response)
        if not queries:
            return self._without_a_query(raw_response)
        self._remember_trajectory()
        return self._observe(await self.tool.aexecute({"query": queries[0]}))

    def _observe(self, result: ToolResult) -> StepResult:
        return self.format_tool_response([result.content]), [result.success], True

    def _without_a_query(self, raw_response: str) -> StepResult:
        if not self._remind or _ANSWER in raw_response:
            return "", [], False
        return (
            "\nTo search, write <search>your query</search>. To answer, write <answer>your "
            "answer</answer>.\n",
            [],
            True,
        )

    def extract_tool_calls(self, raw_response: str) -> list[str]:
        """The last complete query, or nothing."""
        end = raw_response.rfind(_CLOSE)
        start = raw_response.rfind(_OPEN, 0, max(end, 0))
        return [] if start < 0 else [raw_response[start + len(_OPEN) : end].strip()]

    def format_tool_response(self, tool_responses: list[str]) -> str:
        """The passages between ``<information>`` tags; tags inside of them are made harmless."""
        if not tool_responses:
            return ""
        shown = presentable(tool_responses[0], self.max_tool_response_length, _TAGS)
        return f"\n\n<information>{shown}</information>\n\n"
