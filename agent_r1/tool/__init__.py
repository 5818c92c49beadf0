"""Tools, and the environments that models use them through."""

from agent_r1.tool.base import (
    BaseTool,
    BaseToolEnv,
    CallContext,
    ToolResult,
    call_context,
)
from agent_r1.tool.registry import make_env, make_tool, register_env, register_tool

__all__ = [
    "BaseTool",
    "BaseToolEnv",
    "CallContext",
    "ToolResult",
    "call_context",
    "make_env",
    "make_tool",
    "register_env",
    "register_tool",
]
