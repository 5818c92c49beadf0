"""The HTTP side of the endpoint: who may ask, for which session, and how answers go out.

A request belongs to the session of its key (``Authorization: Bearer KEY``) or of its address
(``/s/KEY/v1/...``). The server runs in the event loop of whoever samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import uvicorn

from agent_r1.errors import ConfigError, EngineError, MessageError
from agent_r1.rollout.endpoint.responses import as_response, read_response_request
from agent_r1.rollout.endpoint.session import Answer, OnText, Session, SessionOver
from agent_r1.rollout.endpoint.wire import (
    BadRequest,
    EventStream,
    Request,
    as_json,
    error_body,
    read_request,
)
from agent_r1.types import Outcome

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY = 32 << 20
_PATH = re.compile(
    r"(?:/s/(?P<key>[\w-]+))?/v1/(?P<what>models|chat/completions|completions|responses)"
)
_KEEP_ALIVE_S = 600


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the endpoint bears."""

    max_concurrency: int | None = None
    """Requests at once; more are told to come again (429)."""


class Endpoint:
    """An ASGI application over sessions, and the server that runs it.

    Sessions are added with :meth:`open` and removed with :meth:`close_session`. A key that
    nobody opened is refused, unless there is an ``anonymous`` session for whoever comes. It
    listens on the loopback interface unless told otherwise.
    """

    def __init__(
        self,
        model: str,
        limits: ServerLimits | None = None,
        *,
        anonymous: Session | None = None,
    ) -> None:
        self._model = model
        self._anonymous = anonymous
        self._limits = limits or ServerLimits()
        self._sessions: dict[str, Session] = {}
        self._running = 0
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None
        self.url = ""
        """``http://host:port``, while the server runs."""

    # --- sessions -----------------------------------------------------------------------

    def open(self, session: Session, key: str | None = None) -> str:
        """Serve a session; returns the key that names it."""
        key = key or f"sk-{secrets.token_urlsafe(24)}"
        self._sessions[key] = session
        return key

    def close_session(self, key: str) -> None:
        """Answer no further request of a session."""
        session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def _session(self, scope: Scope, key: str | None) -> Session | None:
        if key is None:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            scheme, _, key = header.partition(" ")
            if scheme.lower() != "bearer":
                return self._anonymous
        given = key.strip().encode()
        for known, session in self._sessions.items():
            if hmac.compare_digest(known.encode(), given):
                return session
        return self._anonymous

    # --- the server ---------------------------------------------------------------------

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, in the running event loop; returns the address without ``/v1``."""
        if self._task is not None and not self._task.done():
            return self.url
        try:
            self._listener = socket.create_server((host, port), backlog=1024)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error}; choose --port") from error
        self.url = f"http://{host}:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
            ws="none",
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)
        return self.url

    async def wait(self) -> None:
        """Serve until :meth:`stop` or until the task is cancelled."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Finish what is being answered, then stop listening. Idempotent."""
        for key in list(self._sessions):
            self.close_session(key)
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._listener is not None:
            self._listener.close()
        self._server = self._task = self._listener = None

    # --- requests -----------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one request."""
        if scope["type"] != "http":
            return
        reply = _Reply(send)
        match = _PATH.fullmatch(scope["path"])
        if match is None:
            return await reply.error(404, f"there is no {scope['path']}", "not_found_error")
        session = self._session(scope, match["key"])
        if session is None:
            return await reply.error(401, "this key opens no session", "authentication_error")
        if match["what"] == "models":
            model = {"id": self._model, "object": "model", "created": 0, "owned_by": "agent-r1"}
            return await reply.json(200, {"object": "list", "data": [model]})
        if scope["method"] != "POST":
            return await reply.error(405, "use POST", "invalid_request_error")
        most = self._limits.max_concurrency
        if most is not None and self._running >= most:
            text = f"{most} requests are being answered already; come again"
            return await reply.error(429, text, "rate_limit_error", {b"retry-after": b"1"})
        self._running += 1
        try:
            await self._serve(session, match["what"], receive, reply)
        finally:
            self._running -= 1

    async def _serve(self, session: Session, what: str, receive: Receive, reply: _Reply) -> None:
        try:
            body = await _body(receive)
            if what == "responses":
                answer = self._respond(session, read_response_request(body, session), reply)
            else:
                chat = what == "chat/completions"
                answer = self._answer(session, read_request(body, chat=chat), reply)
            answering = asyncio.create_task(answer)
            hung_up = asyncio.create_task(_disconnected(receive))
            try:
                done, _ = await asyncio.wait(
                    {answering, hung_up}, return_when=asyncio.FIRST_COMPLETED
                )
                if answering in done:
                    await answering
            finally:  # an agent that hung up has not seen the answer: it is no action
                for task in (answering, hung_up):
                    task.cancel()
                await asyncio.gather(answering, hung_up, return_exceptions=True)
        except (BadRequest, MessageError) as error:
            await reply.error(400, str(error), "invalid_request_error")
        except SessionOver as error:
            code = (
                "context_length_exceeded" if error.outcome is Outcome.CONTEXT else "limit_reached"
            )
            await reply.error(400, str(error), "invalid_request_error", code=code)
        except EngineError as error:
            await reply.error(500, str(error), "server_error", {b"x-should-retry": b"false"})

    async def _respond(self, session: Session, request: Request, reply: _Reply) -> None:
        answer = await _ask(session, request, None)
        await reply.json(200, as_response(answer, request, session))

    async def _answer(self, session: Session, request: Request, reply: _Reply) -> None:
        if not request.stream:
            answer = await _ask(session, request, None)
            await reply.json(200, as_json(answer, request, session.codec))
            return
        events = EventStream(request)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        sampling = asyncio.create_task(_ask(session, request, pieces.put_nowait))
        sampling.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                await reply.events(events.begin() if not reply.begun else ())
                await reply.events(events.piece(piece))
            answer = await sampling
        except EngineError as error:
            if not reply.begun:
                raise
            await reply.events(events.fail(error_body(str(error), "server_error")))
            await reply.finish()
            return
        finally:
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        await reply.events(events.begin() if not reply.begun else ())
        await reply.events(events.end(answer))
        await reply.finish()


async def _ask(session: Session, request: Request, on_text: OnText | None) -> Answer:
    if request.chat:
        return await session.chat(request.messages, request.tools, request.ask, on_text)
    return await session.complete(request.prompt, request.ask, on_text)


async def _body(receive: Receive) -> Any:
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the request broke off")
        parts += message.get("body", b"")
        if len(parts) > MAX_BODY:
            raise BadRequest(f"a request has at most {MAX_BODY} bytes")
        if not message.get("more_body"):
            break
    try:
        return json.loads(parts)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no valid JSON: {error}") from error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Reply:
    """One HTTP answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def json(
        self, status: int, body: dict[str, Any], headers: dict[bytes, bytes] | None = None
    ) -> None:
        content = json.dumps(body, ensure_ascii=False).encode()
        kind = {b"content-type": b"application/json", b"content-length": b"%d" % len(content)}
        await self._start(status, {**kind, **(headers or {})})
        await self._send({"type": "http.response.body", "body": content})

    async def error(
        self,
        status: int,
        message: str,
        kind: str,
        headers: dict[bytes, bytes] | None = None,
        code: str | None = None,
    ) -> None:
        if not self.begun:
            await self.json(status, error_body(message, kind, code), headers)

    async def events(self, events: Any) -> None:
        for event in events:
            if not self.begun:
                await self._start(200, {b"content-type": b"text/event-stream"})
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers.items())}
        )


class _Server(uvicorn.Server):
    """A server that leaves the process's signals to whoever runs the event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(endpoint: Endpoint, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """The endpoint's address, for as long as the block lasts."""
    url = await endpoint.start(host, port)
    try:
        yield url
    finally:
        await endpoint.stop()
