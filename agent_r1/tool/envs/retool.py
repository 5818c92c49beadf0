"""ReTool: the model writes ``<code>``, a sandbox runs it, the output comes back.

The cycle is that of "ReTool: Reinforcement Learning for Strategic Tool Use in LLMs"
(arXiv 2504.11536): thinking, code, observation, more thinking, and in the end an answer
without code.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from agent_r1.errors import ConfigError
from agent_r1.tool.base import BaseTool, StepResult, ToolResult
from agent_r1.tool.envs.tool_using import ToolUsingEnv
from agent_r1.tool.text import presentable

_OPEN, _CLOSE = "<code>", "</code>"
_FENCED = re.compile(
    r"```[ \t]*(?:[\w+-]*[ \t]*\r?\n|(?:python|py)[ \t]+)?(.*?)(?:```)?", re.DOTALL
)
_TAGS = ("<interpreter>", "</interpreter>", _OPEN, _CLOSE)


class ReToolEnv(ToolUsingEnv):
    """Runs the Python program between ``<code>`` and ``</code>``, one per turn.

    * Generation stops at ``</code>``, so a turn has one block as a rule. Where an engine
      wrote on, **the last complete block** is run, the one that the turn ended with;
      blocks are never joined.
    * A block may stand anywhere in the text, in the middle of a line too. It begins at the
      last ``<code>`` before its ``</code>``, so that talking about the tag does no harm.
    * A Markdown fence around the program, with or without a language, is taken off, and so
      is indentation that all lines share. Nothing else of it is changed.
    * ``<code>`` without an end is no call: the text was cut off, or the model is done.
      An empty block is a call, and a failed one.

    The episode is over with the first turn that calls nothing.
    """

    stop_strings = (_CLOSE,)

    def __init__(self, tools: Sequence[BaseTool], max_tool_response_length: int = 2048) -> None:
        super().__init__(tools, max_tool_response_length)
        if len(tools) != 1 or tools[0].name != "python":
            names = [tool.name for tool in tools]
            raise ConfigError(
                f"the retool environment works with exactly one tool named 'python', not {names}: "
                "set tool.tools=[python]"
            )
        self.tool = tools[0]

    def step(self, raw_response: str) -> StepResult:
        programs = self.extract_tool_calls(raw_response)
        if not programs:
            return "", [], False
        self._remember_trajectory()
        return self._observe(self.tool.execute({"code": programs[0]}))

    async def astep(self, raw_response: str) -> StepResult:
        programs = self.extract_tool_calls(raw_response)
        if not programs:
            return "", [], False
        self._remember_trajectory()
        return self._observe(await self.tool.aexecute({"code": programs[0]}))

    def _observe(self, result: ToolResult) -> StepResult:
        return self.format_tool_response([result.content]), [result.success], True

    def extract_tool_calls(self, raw_response: str) -> list[str]:
        """The program of the last complete block, or nothing."""
        end = raw_response.rfind(_CLOSE)
        start = raw_response.rfind(_OPEN, 0, max(end, 0))
        if start < 0:
            return []
        return [_program(raw_response[start + len(_OPEN) : end])]

    def format_tool_response(self, tool_responses: list[str]) -> str:
        """The output between ``<interpreter>`` tags, cut to ``max_tool_response_length``.

        Tags and control tokens that the program printed are made harmless.
        """
        if not tool_responses:
            return ""
        shown = presentable(tool_responses[0], self.max_tool_response_length, _TAGS)
        return f"\n<interpreter>\n{shown}\n</interpreter>\n"


def _program(block: str) -> str:
    """The program inside a block: without its fence and the indentation all lines share."""
    fenced = _FENCED.fullmatch(block.strip())
    code = fenced[1] if fenced else block
    return textwrap.dedent(code.strip("\r\n")).rstrip()
