"""Tools of MCP servers (Model Context Protocol), by the official ``mcp`` package.

Each server of ``tool.mcp`` is connected before the run begins, its tools are discovered and
become tools like any other. The connections live in one background thread with an event
loop of its own, because calls come from the trainer's event loop and from threads alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from agent_r1.config.section import Section
from agent_r1.errors import ConfigError, ToolError
from agent_r1.registry import nearest
from agent_r1.tool.base import BaseTool, ToolResult, call_context
from agent_r1.tool.text import truncate
from agent_r1.tool.threads import LoopThread

if TYPE_CHECKING:
    from mcp import Client


class McpServerConfig(Section):
    """One server of ``tool.mcp``: a ``command`` to start (stdio) or a ``url`` (streamable HTTP)."""

    command: str | None = None
    """Program to start; it speaks MCP on its standard input and output."""
    args: tuple[str, ...] = ()
    """Arguments of the program."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program besides PATH, HOME and the like."""
    env_from: tuple[str, ...] = ()
    """Variables of this process that the program gets too, so that no file holds a secret."""
    cwd: str | None = None
    """Working directory of the program."""
    url: str | None = None
    """Address of a server that speaks streamable HTTP, such as http://127.0.0.1:8000/mcp."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request to ``url``."""
    token_env: str | None = None
    """Environment variable whose value is sent to ``url`` as a bearer token."""
    tools: tuple[str, ...] | None = None
    """Tools to offer, by the server's names. null: all."""
    prefix: str = ""
    """Put before the names of the server's tools, where two servers have the same."""
    session: Literal["shared", "trajectory"] = "shared"
    """``trajectory``: each trajectory gets a connection (and a process) of its own, for servers
    that keep state."""
    connect_timeout_s: PositiveFloat = 30.0
    """Seconds for connecting and listing the tools."""
    max_result_length: PositiveInt = 100_000
    """Longest result, in characters, before the environment cuts it further."""


def read_server(name: str, options: Mapping[str, Any]) -> McpServerConfig:
    """The settings of one server, as they stand in ``mcpServers`` files too.

    Raises:
        ConfigError: names the setting that is wrong and what is possible.
    """
    given = {key: value for key, value in options.items() if key not in ("type", "transport")}
    known = list(McpServerConfig.model_fields)
    for wrong in (key for key in given if key not in known):
        raise ConfigError(
            f"tool.mcp.{name} takes no {wrong!r}{nearest(wrong, known)}; it takes: "
            f"{', '.join(known)}"
        )
    try:
        config = McpServerConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"tool.mcp.{name}.{where}: {first['msg']}") from error
    if (config.command is None) == (config.url is None):
        raise ConfigError(
            f"tool.mcp.{name} needs either a command to start (with args) or the url of a server "
            "that runs"
        )
    return config


@contextmanager
def open_mcp_servers(servers: Mapping[str, Mapping[str, Any]]) -> Iterator[list[BaseTool]]:
    """The tools of all servers; connections and processes end with the context.

    Raises:
        ConfigError: a setting is wrong, or the ``mcp`` package is missing.
        ToolError: a server cannot be started or reached, or describes a tool wrongly.
    """
    if not servers:
        yield []
        return
    try:
        import mcp  # noqa: F401  # is it there?
    except ImportError as error:
        raise ConfigError("tool.mcp needs the mcp package: pip install 'agent-r1[mcp]'") from error
    configs = {name: read_server(name, options) for name, options in servers.items()}
    thread = LoopThread("agent-r1-mcp")
    opened = [McpServer(name, config, thread) for name, config in configs.items()]
    try:
        tools: list[BaseTool] = [tool for server in opened for tool in server.discover()]
        _refuse_same_names(tools)
        yield tools
    finally:
        for server in opened:
            server.close()
        thread.close()


def _refuse_same_names(tools: Sequence[BaseTool]) -> None:
    names = [tool.name for tool in tools]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"two MCP servers have a tool called {twice[0]!r}; give one of them a prefix "
            "(tool.mcp.NAME.prefix) or choose its tools (tool.mcp.NAME.tools)"
        )


class McpTool(BaseTool):
    """A tool of a server. What the server reports as an error of the call is shown to the model.

    A server that is gone raises :class:`ToolError`; the next call connects anew. A call that
    was lost is repeated only if the server says that its tool may be (``readOnlyHint`` or
    ``idempotentHint``), because nobody knows whether it was carried out.
    """

    def __init__(self, server: McpServer, described: Any) -> None:
        self.name = server.config.prefix + described.name
        self.description = described.description or ""
        self.parameters = {"type": "object", "properties": {}, **described.input_schema}
        self._server = server
        self._remote_name = described.name
        hints = described.annotations
        self._repeatable = bool(hints and (hints.read_only_hint or hints.idempotent_hint))
        try:
            Draft202012Validator.check_schema(self.parameters)
        except SchemaError as error:
            raise ToolError(
                f"the MCP server {server.name!r} describes {self.name!r} with no valid JSON schema "
                f"({error.message}); leave the tool out with tool.mcp.{server.name}.tools"
            ) from error

    @property
    def keeps_state(self) -> bool:
        return self._server.config.session == "trajectory"

    def execute(self, args: Mapping[str, Any]) -> ToolResult:
        return self._call(args).result()

    async def aexecute(self, args: Mapping[str, Any]) -> ToolResult:
        return await asyncio.wrap_future(self._call(args))

    def end_trajectory(self, trajectory_id: str) -> None:
        self._server.end(trajectory_id)

    def _call(self, args: Mapping[str, Any]) -> Future[ToolResult]:
        context = call_context.get()
        key = context.trajectory_id if context and self.keeps_state else None
        return self._server.call(self._remote_name, dict(args), key, repeat=self._repeatable)


class McpServer:
    """One server: its connections, the shared one or one per trajectory, and calls over them."""

    def __init__(self, name: str, config: McpServerConfig, thread: LoopThread) -> None:
        self.name = name
        self.config = config
        self._thread = thread
        self._connections: dict[str | None, _Connection] = {}

    def discover(self) -> list[McpTool]:
        """The tools that the server offers and the configuration wants."""
        described = self._thread.submit(self._list()).result()
        names = [each.name for each in described]
        for wrong in (w for w in self.config.tools or () if w not in names):
            raise ConfigError(
                f"tool.mcp.{self.name}.tools: the server has no {wrong!r}"
                f"{nearest(wrong, names)}; it has: {', '.join(names) or 'none'}"
            )
        wanted = names if self.config.tools is None else self.config.tools
        return [McpTool(self, each) for each in described if each.name in wanted]

    def call(
        self, tool: str, args: dict[str, Any], key: str | None, *, repeat: bool
    ) -> Future[ToolResult]:
        """Hand a call to the background thread. ``key`` names a trajectory's own connection."""
        return self._thread.submit(self._call(tool, args, key, repeat))

    def end(self, key: str | None) -> None:
        """End a trajectory's connection, and the process with it. Does not wait for that."""
        self._thread.submit(self._drop(self._connections.get(key)))

    def close(self) -> None:
        """End every connection, and wait."""
        for connection in list(self._connections.values()):
            self._thread.submit(self._drop(connection)).result()

    # In the background thread's event loop.

    async def _list(self) -> list[Any]:
        found: list[Any] = []
        cursor: str | None = None
        connection = await self._connected(None)
        try:
            async with asyncio.timeout(self.config.connect_timeout_s):
                while True:
                    page = await (await connection.ready).list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if cursor is None:
                        break
        except Exception as error:
            raise self._failure("did not list its tools", error) from error
        finally:
            if self.config.session == "trajectory":
                await self._drop(connection)
        return found

    async def _call(
        self, tool: str, args: dict[str, Any], key: str | None, repeat: bool
    ) -> ToolResult:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS

        connection = await self._connected(key)
        try:
            result = await (await connection.ready).call_tool(tool, args)
        except Exception as error:
            code = error.code if isinstance(error, MCPError) else CONNECTION_CLOSED
            if code == INVALID_PARAMS:
                return ToolResult(f"Error: {error}", False)
            if code == CONNECTION_CLOSED:
                await self._drop(connection)
                if repeat and key is None:
                    return await self._call(tool, args, key, False)
            raise self._failure(f"did not answer {tool!r}", error) from error
        text = truncate(_text_of(result), self.config.max_result_length)
        return ToolResult(text, not result.is_error)

    async def _connected(self, key: str | None) -> _Connection:
        """The connection of this key, made if there is none, when it can be used."""
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = _Connection(self.config)
        try:
            async with asyncio.timeout(self.config.connect_timeout_s):
                await asyncio.shield(connection.ready)
        except Exception as error:
            said = connection.said()
            await self._drop(connection)
            raise self._failure("cannot be reached", error, said) from error
        return connection

    async def _drop(self, connection: _Connection | None) -> None:
        """Close this very connection; one that was made in its place meanwhile stays."""
        for key, each in list(self._connections.items()):
            if each is connection:
                del self._connections[key]
        if connection is not None:
            await connection.close()

    def _failure(self, what: str, error: BaseException, said: str = "") -> ToolError:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        where = self.config.url or " ".join([self.config.command or "", *self.config.args])
        said = f"; it wrote:\n{said}" if said else ""
        return ToolError(f"the MCP server {self.name!r} ({where}) {what}: {reason}{said}")


class _Connection:
    """A client that is entered and left in one task, as its cancel scopes demand."""

    def __init__(self, config: McpServerConfig) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Client] = loop.create_future()
        self.ready.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._closing = asyncio.Event()
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed below
        self._task = loop.create_task(self._hold(config))

    def said(self) -> str:
        """The end of what the server's process wrote on standard error."""
        if self._stderr.closed:
            return ""
        self._stderr.seek(0)
        return self._stderr.read()[-2000:].strip()

    async def close(self) -> None:
        """Leave the client and wait until it is left. May be called several times at once."""
        self._closing.set()
        if not self.ready.done():
            self._task.cancel()
        await asyncio.wait([self._task])
        self._stderr.close()

    async def _hold(self, config: McpServerConfig) -> None:
        from mcp import Client

        try:
            async with contextlib.AsyncExitStack() as stack:
                transport = await _transport(config, self._stderr, stack)
                client = await stack.enter_async_context(Client(transport, cache=None))
                self.ready.set_result(client)
                await self._closing.wait()
        except asyncio.CancelledError:
            self.ready.cancel()
            raise
        except BaseException as error:  # whatever it is, whoever waits must learn of it
            if not self.ready.done():
                self.ready.set_exception(error)


async def _transport(config: McpServerConfig, stderr: Any, stack: contextlib.AsyncExitStack) -> Any:
    if config.command is not None:
        from mcp import StdioServerParameters, stdio_client

        passed_on = {name: os.environ[name] for name in config.env_from if name in os.environ}
        parameters = StdioServerParameters(
            command=config.command,
            args=list(config.args),
            env={**passed_on, **config.env},
            cwd=config.cwd,
        )
        return stdio_client(parameters, errlog=stderr)
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    headers = dict(config.headers)
    if config.token_env and config.token_env in os.environ:
        headers["Authorization"] = f"Bearer {os.environ[config.token_env]}"
    timeout = httpx2.Timeout(config.connect_timeout_s, read=300.0)
    client = httpx2.AsyncClient(headers=headers, timeout=timeout)
    await stack.enter_async_context(client)
    assert config.url is not None
    return streamable_http_client(config.url, http_client=client)


def _text_of(result: Any) -> str:
    """What a model can read of a result; other content is named with its type and size."""
    parts = [_block_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        from pydantic_core import to_json

        return to_json(result.structured_content).decode()
    return "\n".join(parts)


def _block_text(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource":
            return f"[resource {block.resource.uri}]"
        case "resource_link":
            return f"[resource {block.uri}: {block.name}]"
    kind = getattr(block, "mime_type", "unknown")
    return f"[{block.type} {kind}, {len(getattr(block, 'data', '')) * 3 // 4} bytes]"
