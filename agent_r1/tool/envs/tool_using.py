"""What environments have in common that let a model call a list of tools."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

from agent_r1.errors import ConfigError
from agent_r1.tool.base import BaseTool, BaseToolEnv, call_context
from agent_r1.types import Task


class ToolUsingEnv(BaseToolEnv):
    """Holds the tools, and ends what they keep for a trajectory when it is over.

    Shared by all trajectories, unless a tool keeps state of a trajectory (a persistent
    interpreter): then each trajectory gets a shallow copy, whose only state is the id
    under which that is to be ended.
    """

    def __init__(self, tools: Sequence[BaseTool], max_tool_response_length: int) -> None:
        if not all(isinstance(tool, BaseTool) for tool in tools):
            raise ConfigError(
                f"{type(self).__name__} takes tools, not {[type(t).__name__ for t in tools]}; "
                "make them first, with make_tool(name)"
            )
        if max_tool_response_length < 1:
            raise ConfigError("max_tool_response_length must be at least 1 character")
        self.tools = list(tools)
        self.max_tool_response_length = max_tool_response_length
        self._own_trajectory = False
        self._trajectory_id: str | None = None

    def for_trajectory(self, task: Task) -> Self:
        if not any(tool.keeps_state for tool in self.tools):
            return self
        mine = copy.copy(self)
        mine._own_trajectory = True
        return mine

    def close(self) -> None:
        """End the trajectory's state; on the shared environment, close the tools."""
        if not self._own_trajectory:
            for tool in self.tools:
                tool.close()
        elif self._trajectory_id is not None:
            for tool in self.tools:
                tool.end_trajectory(self._trajectory_id)
            self._trajectory_id = None

    def _remember_trajectory(self) -> None:
        context = call_context.get()
        if self._own_trajectory and context is not None:
            self._trajectory_id = context.trajectory_id
