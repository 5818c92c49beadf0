"""The configured tools, opened: with the sandbox that some need, and closed when done."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from agent_r1.config.task import SandboxConfig, ToolConfig
from agent_r1.registry import import_path
from agent_r1.sandbox.base import Executor, Limits
from agent_r1.tool.base import BaseTool
from agent_r1.tool.registry import TOOLS, make_tool
from agent_r1.tool.tools.mcp import open_mcp_servers


@contextmanager
def open_tools(
    tool: ToolConfig, sandbox: SandboxConfig, executor: SharedExecutor | None = None
) -> Iterator[list[BaseTool]]:
    """The tools of a configuration in the order in which it lists them, MCP servers' at the end.

    What concerns the sandbox is offered to the classes whose constructors ask for it; one
    sandbox serves them all, and none is started where nobody asks. ``executor`` is one that
    other environments use as well.

    Raises:
        RegistryError: a name is not known.
        ConfigError, ToolError: a tool cannot be made; the message says why.
    """
    entries = [TOOLS.get(name) for name in tool.tools]
    with ExitStack() as stack:
        offered: dict[str, Any] = {
            "executor": None,
            "limits": Limits(**sandbox.limits.model_dump()),
            "session": sandbox.session == "trajectory",
        }
        if any(takes(entry, "executor") for entry in entries):
            shared = executor or stack.enter_context(SharedExecutor(sandbox))
            offered["executor"] = shared.get()
        tools: list[BaseTool] = []
        for name, entry in zip(tool.tools, entries, strict=True):
            options = {key: value for key, value in offered.items() if takes(entry, key)}
            tools.append(make_tool(name, **{**options, **tool.tool_kwargs.get(name, {})}))
            stack.callback(tools[-1].close)
        tools += stack.enter_context(open_mcp_servers(tool.mcp))
        yield tools


class SharedExecutor:
    """The sandbox of a run, started when the first tool asks for it, closed with the context."""

    def __init__(self, sandbox: SandboxConfig) -> None:
        self._sandbox = sandbox
        self._executor: Executor | None = None

    def get(self) -> Executor:
        if self._executor is None:
            self._executor = build_executor(self._sandbox)
        return self._executor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.close()


def build_executor(sandbox: SandboxConfig) -> Executor:
    """The embedded sandbox, a client of sandbox services, or what a dotted path names."""
    if sandbox.executor == "embedded":
        from agent_r1.sandbox.embedded import EmbeddedExecutor

        return EmbeddedExecutor(workers=sandbox.workers, isolation=sandbox.isolation)
    if sandbox.executor == "http":
        from agent_r1.sandbox.client import SandboxClient

        token = os.environ.get(sandbox.token_env)
        return SandboxClient(list(sandbox.endpoints) or None, token=token)
    executor: Executor = import_path(sandbox.executor)(sandbox)
    return executor


def takes(entry: object, option: str) -> bool:
    """Whether the constructor of a class has this parameter; functions are offered none."""
    return isinstance(entry, type) and option in inspect.signature(entry).parameters
