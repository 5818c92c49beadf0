"""Tools, and the environments that models use them through."""

from agent_r1.tool.base import (
    BaseTool,
    BaseToolEnv,
    CallContext,
    ToolResult,
    call_context,
)
from agent_r1.tool.protocol import Environment, Start, Step
from agent_r1.tool.registry import as_tool, make_env, make_tool, register_env, register_tool
from agent_r1.tool.tools.function import FunctionTool, tool

__all__ = [
    "BaseTool",
    "BaseToolEnv",
    "CallContext",
    "Environment",
    "FunctionTool",
    "Start",
    "Step",
    "ToolResult",
    "as_tool",
    "call_context",
    "make_env",
    "make_tool",
    "register_env",
    "register_tool",
    "tool",
]
