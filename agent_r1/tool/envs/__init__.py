"""Tool environments, by name."""

from __future__ import annotations

from agent_r1.tool.registry import ENVS, EnvClass


def _default_env(name: str) -> EnvClass:
    """The environment class of a registered name, entry point, dotted path or ``file.py:Class``."""
    return ENVS.get(name)
