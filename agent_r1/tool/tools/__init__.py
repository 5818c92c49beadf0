"""Tools, by name."""

from __future__ import annotations

from typing import Any

from agent_r1.tool.base import BaseTool
from agent_r1.tool.registry import make_tool


def _default_tool(name: str, **options: Any) -> BaseTool:
    """A new tool of a registered name, entry point, dotted path or ``file.py:Class``."""
    return make_tool(name, **options)
