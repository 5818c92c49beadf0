"""The names of tools and tool environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from agent_r1.errors import ConfigError
from agent_r1.registry import Registry, nearest
from agent_r1.tool.base import BaseTool, BaseToolEnv


def _no_env(entry: object) -> str | None:
    if isinstance(entry, type) and issubclass(entry, BaseToolEnv):
        return None
    return f"{entry!r} is not a class derived from agent_r1.tool.base.BaseToolEnv"


def _no_tool(entry: object) -> str | None:
    if isinstance(entry, type) and issubclass(entry, BaseTool):
        return None
    return f"{entry!r} is not a class derived from agent_r1.tool.base.BaseTool"


ENVS: Registry[type[BaseToolEnv]] = Registry(
    "tool environment",
    group="agent_r1.envs",
    builtin={
        "retool": "agent_r1.tool.envs.retool:ReToolEnv",
        "nous": "agent_r1.tool.envs.nous:NousToolEnv",
    },
    check=_no_env,
)
TOOLS: Registry[type[BaseTool]] = Registry(
    "tool",
    group="agent_r1.tools",
    builtin={"python": "agent_r1.tool.tools.python:PythonTool"},
    check=_no_tool,
)


def register_env(name: str) -> Callable[[type[BaseToolEnv]], type[BaseToolEnv]]:
    """Class decorator: make an environment available as ``tool.env=NAME``."""
    return ENVS.register(name)


def register_tool(name: str) -> Callable[[type[BaseTool]], type[BaseTool]]:
    """Class decorator: make a tool available in ``tool.tools=[NAME]``."""
    return TOOLS.register(name)


def make_tool(name: str, **options: Any) -> BaseTool:
    """Make the tool of this name or path.

    Raises:
        RegistryError: there is none.
        ConfigError: it does not take one of the options, or asks for one more.
    """
    return construct(TOOLS.get(name), name, options)  # type: ignore[no-any-return]


def make_env(name: str, tools: Sequence[BaseTool], **options: Any) -> BaseToolEnv:
    """Make the environment of this name or path around these tools.

    A constructor that takes no ``tools`` (a game, say) is not given any; it is an error
    to configure tools for it.

    Raises:
        RegistryError: there is none.
        ConfigError: it does not take one of the options, or asks for one more.
    """
    env_class = ENVS.get(name)
    if tools or _takes(env_class, "tools"):
        options = {"tools": list(tools), **options}
    return construct(env_class, name, options)  # type: ignore[no-any-return]


def _takes(factory: type, option: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def construct(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    """Call ``factory(**options)``; options that do not fit are named in a ConfigError."""
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        takes = [p for p in signature.parameters if p not in ("args", "kwargs")]
        wrong = next((o for o in options if o not in takes), "")
        hint = nearest(wrong, takes) if wrong else ""
        raise ConfigError(
            f"{name!r} cannot be made: {error}{hint}; it takes: {', '.join(takes) or 'nothing'}"
        ) from error
    return factory(**options)
