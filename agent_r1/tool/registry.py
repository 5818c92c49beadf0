"""The names of tools and tool environments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from agent_r1.errors import ConfigError
from agent_r1.registry import Registry, nearest
from agent_r1.tool.base import BaseTool, BaseToolEnv
from agent_r1.tool.protocol import Env, Environment, PerTrajectory

EnvClass: TypeAlias = type[BaseToolEnv] | type[Environment]
"""What stands under the name of an environment."""


def _no_env(entry: object) -> str | None:
    if isinstance(entry, type) and issubclass(entry, BaseToolEnv | Environment):
        return None
    return f"{entry!r} is not a class derived from agent_r1.tool.Environment or BaseToolEnv"


def _no_tool(entry: object) -> str | None:
    if isinstance(entry, type):
        fits = issubclass(entry, BaseTool)
    else:
        fits = isinstance(entry, BaseTool) or callable(entry)
    if fits:
        return None
    return f"{entry!r} is neither a class derived from agent_r1.tool.base.BaseTool nor a function"


ENVS: Registry[EnvClass] = Registry(
    "tool environment",
    group="agent_r1.envs",
    builtin={
        "retool": "agent_r1.tool.envs.retool:ReToolEnv",
        "nous": "agent_r1.tool.envs.nous:NousToolEnv",
        "search_r1": "agent_r1.tool.envs.search:SearchR1Env",
        "agent": "agent_r1.tool.envs.agent:AgentEnv",
        "gymnasium": "agent_r1.tool.foreign.gymnasium:GymnasiumEnv",
        "openenv": "agent_r1.tool.foreign.openenv:OpenEnvEnv",
        "textarena": "agent_r1.tool.foreign.textarena:TextArenaEnv",
        "verifiers": "agent_r1.tool.foreign.verifiers:VerifiersEnv",
    },
    check=_no_env,
)
ToolEntry: TypeAlias = type[BaseTool] | BaseTool | Callable[..., Any]
"""What stands under the name of a tool: its class, a finished tool, or a plain function."""

TOOLS: Registry[ToolEntry] = Registry(
    "tool",
    group="agent_r1.tools",
    builtin={
        "python": "agent_r1.tool.tools.python:PythonTool",
        "search": "agent_r1.tool.tools.search:SearchTool",
    },
    check=_no_tool,
)


E = TypeVar("E", bound=ToolEntry)
V = TypeVar("V", bound=EnvClass)


def register_env(name: str) -> Callable[[V], V]:
    """Class decorator: make an environment available as ``tool.env=NAME``."""

    def add(entry: V) -> V:
        ENVS.register(name)(entry)
        return entry

    return add


def register_tool(name: str) -> Callable[[E], E]:
    """Decorator of a class or a function: make it available in ``tool.tools=[NAME]``."""

    def add(entry: E) -> E:
        TOOLS.register(name)(entry)
        return entry

    return add


def make_tool(name: str, /, **options: Any) -> BaseTool:
    """Make the tool of this name or path.

    ``options`` are the arguments of a class. Those of a function are filled in for good, and
    the model never sees the parameters that they fill.

    Raises:
        RegistryError: there is none.
        ConfigError: it does not take one of the options, or asks for one more.
        ToolError: a function cannot be described to a model.
    """
    entry = TOOLS.get(name)
    if isinstance(entry, type):
        return construct(entry, name, options)  # type: ignore[no-any-return]
    from agent_r1.tool.tools.function import FunctionTool

    made = entry if isinstance(entry, BaseTool) else FunctionTool(entry)
    if not options:
        return made
    if not isinstance(made, FunctionTool):
        raise ConfigError(
            f"{name!r} is a finished tool and takes no {', '.join(options)}; name its class to "
            "give it options"
        )
    return made.with_arguments(options)


def as_tool(given: BaseTool | Callable[..., Any]) -> BaseTool:
    """``given``, where it is a function as the tool that calls it."""
    if isinstance(given, BaseTool):
        return given
    from agent_r1.tool.tools.function import FunctionTool

    return FunctionTool(given)


def make_env(name: str, tools: Sequence[BaseTool], /, **options: Any) -> Env:
    """Make the environment of this name or path around these tools, or what makes one for each
    trajectory.

    A constructor that takes no ``tools`` (a game, say) is not given any; it is an error
    to configure tools for it.

    Raises:
        RegistryError: there is none.
        ConfigError: it does not take one of the options, or asks for one more.
    """
    env_class = ENVS.get(name)
    if tools or _takes(env_class, "tools"):
        options = {"tools": list(tools), **options}
    if issubclass(env_class, Environment):
        shared = {"shared": None} if _takes(env_class, "shared") else {}
        require_options(env_class, name, options | shared)
        return PerTrajectory(env_class, options)
    return construct(env_class, name, options)  # type: ignore[no-any-return]


def _takes(factory: type, option: str) -> bool:
    parameters = inspect.signature(factory).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def construct(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> Any:
    """Call ``factory(**options)``; options that do not fit are named in a ConfigError."""
    require_options(factory, name, options)
    return factory(**options)


def require_options(factory: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
    """Raise a ConfigError that names what ``factory`` does not take, or asks for besides."""
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
