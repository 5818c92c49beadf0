"""Agent-R1: end-to-end reinforcement learning for language-model agents that use tools.

The names below are what a program of yours needs. They are imported when they are first used::

    from agent_r1 import Trainer
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "BaseTool": "agent_r1.tool.base",
    "BaseToolEnv": "agent_r1.tool.base",
    "Config": "agent_r1.config.schema",
    "Reward": "agent_r1.types",
    "Step": "agent_r1.trainer.library",
    "Task": "agent_r1.types",
    "Trainer": "agent_r1.trainer.library",
    "Trajectory": "agent_r1.types",
    "load_config": "agent_r1.config.load",
}

__all__ = ["__version__", *_WHERE]  # names by table


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'agent_r1' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
