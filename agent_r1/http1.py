"""A small HTTP/1.1 client: keep-alive connections of one event loop, bodies of JSON.

A general client library costs more per request than a short program costs to run. This one
knows exactly what a sandbox and an engine need: POST a body, read an answer with a length, keep
the connection, and say precisely *how* an exchange failed, because whether a request may be
sent again depends on whether the server can have seen it. No proxy variable of the
environment is read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from agent_r1.errors import ConfigError

IDLE_SECONDS = 30.0
"""Unused connections are dropped after this; servers drop them later (uvicorn: 75 s here)."""
RESPONSE_BYTES = 512 << 20


class TransportError(Exception):
    """An exchange that gave no response. ``sent``: the server may have seen the request."""

    def __init__(
        self, message: str, *, sent: bool, stale: bool = False, timed_out: bool = False
    ) -> None:
        super().__init__(message)
        self.sent = sent
        self.timed_out = timed_out
        """There is a connection, and no answer came by it."""
        self.stale = stale
        """The connection was a kept one, closed before any byte of the answer."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed endpoint URL."""

    url: str
    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def parse(cls, url: str, of: str) -> Address:
        """Raises :class:`~agent_r1.errors.ConfigError` for what is no http(s) URL of ``of``."""
        text = url.strip().rstrip("/")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{of} {url!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{of} {url!r} is no URL; write it as http://127.0.0.1:8080")
        tls = parts.scheme == "https"
        return cls(text, parts.hostname, port or (443 if tls else 80), parts.path, tls)

    def head(self, method: str, path: str, token: str | None) -> bytes:
        """The request line and the headers that do not depend on the body."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += ["Accept: application/json", "Content-Type: application/json"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        return "\r\n".join(lines).encode("latin-1")


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.open = True
        self.used = 0
        self.idle_since = 0.0
        self._answer: asyncio.Future[Response] | None = None
        self._parser: Any = None
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._size = 0

    async def exchange(self, data: bytes) -> Response:
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._chunks, self._size = {}, [], 0
        self.transport.write(data)
        try:
            return await self._answer
        finally:
            if not self._answer.done() or self._answer.cancelled():
                self.abort()  # given up in the middle: the connection is of no more use
            self._answer = None
            self.used += 1

    def abort(self) -> None:
        self.open = False
        if self.transport is not None:
            self.transport.abort()

    # asyncio calls these
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return self.abort()  # nobody asked
        self._size += len(data)
        try:
            if self._size > RESPONSE_BYTES:
                raise httptools.HttpParserError(f"the answer is larger than {RESPONSE_BYTES} bytes")
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._fail(f"the connection was lost ({error or 'closed by the server'})")

    # httptools calls these
    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.open = False
        status = self._parser.get_status_code()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Response(status, self._headers, b"".join(self._chunks)))

    def _fail(self, message: str) -> None:
        if self._answer is not None and not self._answer.done():
            stale = self.used > 0 and self._size == 0
            self._answer.set_exception(TransportError(message, sent=True, stale=stale))


@dataclass(slots=True)
class Pool:
    """Connections to one address. Belongs to one event loop.

    Unused connections are dropped after ``idle_seconds``, which should be before the server does.
    """

    address: Address
    token: str | None = None
    connect_seconds: float = 5.0
    idle_seconds: float = IDLE_SECONDS
    _idle: deque[_Connection] = field(default_factory=deque)
    _tls: ssl.SSLContext | None = None

    async def post(
        self, path: str, body: bytes, seconds: float | None, *, fresh: bool = False
    ) -> Response:
        """Send and wait for the answer; :class:`TransportError` within ``seconds`` if any.

        ``fresh`` opens a connection for this request alone, which must not meet one that
        the server is just closing.
        """
        head = self.address.head("POST", path, self.token)
        return await self._send(
            head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body, seconds, fresh
        )

    async def get(self, path: str, seconds: float) -> Response:
        """As :meth:`post`, without a body, on a new connection."""
        return await self._send(
            self.address.head("GET", path, self.token) + b"\r\n\r\n", seconds, True
        )

    def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()

    async def _send(self, data: bytes, seconds: float | None, fresh: bool) -> Response:
        connection = None if fresh else self._kept()
        if connection is None:
            longest = self.connect_seconds
            connection = await self._connect(longest if seconds is None else min(seconds, longest))
        try:
            async with asyncio.timeout(seconds):
                response = await connection.exchange(data)
        except TimeoutError as error:
            said = f"no answer within {seconds:g} s"
            raise TransportError(said, sent=True, timed_out=True) from error
        if connection.open and not fresh:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()
        return response

    def _kept(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - self.idle_seconds
        while self._idle and (not self._idle[0].open or self._idle[0].idle_since < oldest):
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self, seconds: float) -> _Connection:
        loop = asyncio.get_running_loop()
        if self.address.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(seconds):
                transport, connection = await loop.create_connection(
                    _Connection, self.address.host, self.address.port, ssl=self._tls
                )
        except TimeoutError as error:
            raise TransportError(f"no connection within {seconds:g} s", sent=False) from error
        except OSError as error:
            raise TransportError(f"no connection: {error}", sent=False) from error
        raw = transport.get_extra_info("socket")
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection
