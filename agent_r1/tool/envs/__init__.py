"""Tool environments, by name."""

from __future__ import annotations

from agent_r1.tool.base import BaseToolEnv
from agent_r1.tool.registry import ENVS


def _default_env(name: str) -> type[BaseToolEnv]:
    """The environment class of a registered name, entry point, dotted path or ``file.py:Class``."""
    return ENVS.get(name)
