"""The HTTP service of a sandbox: SandboxFusion's protocol over any :class:`Executor`.

A plain ASGI application, because at a millisecond per program a web framework would take more
time than the program. It validates, queues (:mod:`agent_r1.sandbox.admission`), runs and
counts; isolation is the executor's business.

=========================  ===============================================================
``POST /run_code``         one program
``POST /run_jupyter``      cells of a notebook, in one interpreter
``POST /close_session``    end a persistent interpreter (``{"session": name}``)
``GET /v1/ping``           ``"pong"``, without authentication
``GET /health``            state, load and isolation as JSON; 503 while shutting down;
                           without authentication
``GET /metrics``           Prometheus text
=========================  ===============================================================

Every result of a program is HTTP 200. Otherwise the body says what to do in ``detail`` and
``error`` is one word: 422 ``invalid`` or ``language_unavailable``, 401 ``unauthorized``, 413
``too_large``, 409 ``session_lost``, 429 ``full`` (with ``Retry-After``), 503 ``draining``
or ``overloaded``, 504 ``late`` (waited too long in the queue), 500 ``bug``.

*Not protected*: there is no TLS and no rate limit per client, and every client with access may
use every session whose name it knows. Put a proxy before it on an open network.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from agent_r1 import __version__
from agent_r1.errors import (
    ConfigError,
    LanguageUnavailable,
    SandboxError,
    SandboxOverloaded,
    SandboxUnavailable,
)
from agent_r1.sandbox import jupyter, metrics, wire
from agent_r1.sandbox.admission import Admission, Hold, Refused
from agent_r1.sandbox.base import Executor, RunRequest, RunResult
from agent_r1.sandbox.jobs import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)

REFUSAL_STATUS = {"full": 429, "draining": 503, "overloaded": 503, "unavailable": 503, "late": 504}
OPEN_PATHS = ("/v1/ping", "/health")
"""What a load balancer may ask without the token."""
WATCH_AFTER = 0.05
"""Seconds after which a request is long enough to watch whether its client is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """The limits of the service itself. What a program may use is in the request."""

    slots: int | None = None
    """Programs at once; ``None``: as many as the executor says it has, else one per core."""
    queue_entries: int = 10_000
    queue_bytes: int = 512 << 20
    """Of the bodies of all requests that are being received, wait or run."""
    queue_seconds: float = 300.0
    """How long a request may wait for a slot before 504."""
    body_bytes: int = 64 << 20
    header_bytes: int = 64 << 10
    """Request line and headers together."""
    header_seconds: float = 30.0
    """How long they may take to arrive, from the connection on."""
    body_seconds: float = 120.0
    """How long a body may take to arrive."""
    run_seconds: float = 3600.0
    """The largest time limit that a request may ask for; also of compilation."""
    memory_bytes: int = 64 << 30
    """The largest memory limit that a request may ask for."""
    output_bytes: int = 64 << 20
    """The largest output limit that a request may ask for."""
    processes: int = 4096
    """The largest number of processes that a request may ask for."""
    file_bytes: int = 16 << 30
    """The largest limit of files that a request may ask for."""
    token: str | None = None
    """Bearer token; ``None`` lets everybody in who reaches the address."""

    def __post_init__(self) -> None:
        for name in (
            "queue_seconds",
            "body_bytes",
            "queue_bytes",
            "header_bytes",
            "header_seconds",
            "body_seconds",
            "run_seconds",
            "memory_bytes",
            "output_bytes",
            "processes",
            "file_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.slots is not None and self.slots < 1:
            raise ConfigError(f"slots is {self.slots}; a sandbox needs at least 1")
        if self.token == "":
            raise ConfigError("the token is empty; give one or leave it out")

    def limits(self) -> dict[str, float]:
        """All limits, for clients to see; the token is not among them."""
        return {
            name: value
            for name in self.__dataclass_fields__
            if isinstance(value := getattr(self, name), int | float)
        }


class SessionBody(msgspec.Struct):
    session: str


class _Answer(Exception):
    """Ends a request early with this status and body."""

    def __init__(self, status: int, error: str, detail: Any, retry_after: int | None = None):
        super().__init__(error)
        self.status, self.error, self.detail, self.retry_after = status, error, detail, retry_after


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes
    status: int = 200
    content_type: bytes = b"application/json"
    retry_after: int | None = None


Handler = Callable[[Scope, Receive, Hold], Awaitable[_Reply]]


class SandboxService:
    """The ASGI application. ``executor`` stays the caller's to close."""

    def __init__(self, executor: Executor, policy: ServicePolicy | None = None) -> None:
        self.executor = executor
        self.policy = policy or ServicePolicy()
        self.instance = uuid.uuid4().hex
        self.metrics = metrics.Metrics()
        self.slots = (
            self.policy.slots or int(getattr(executor, "workers", 0)) or os.cpu_count() or 1
        )
        self.admission = Admission(self.slots, self.policy.queue_entries, self.policy.queue_bytes)
        self._pod = os.environ.get("MY_POD_NAME")
        self._token = None if self.policy.token is None else f"Bearer {self.policy.token}".encode()
        self._session_decoder = msgspec.json.Decoder(SessionBody)
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/run_code"): self._run_code,
            ("POST", "/run_jupyter"): self._run_jupyter,
            ("POST", "/close_session"): self._close_session,
            ("GET", "/v1/ping"): self._ping,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
        }

    def drain(self) -> None:
        """From now on nothing is accepted; what runs may finish, what waits is sent away."""
        self.admission.drain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the sandbox speaks HTTP only, not {scope['type']}")
        try:
            reply = await self._reply(scope, receive)
        except _ClientGone:
            metrics.count(self.metrics.refusals, ("reason", "client_gone"))
            return None
        path = scope["path"] if (scope["method"], scope["path"]) in self._routes else "other"
        metrics.count(self.metrics.requests, ("path", path), ("code", str(reply.status)))
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-sandbox-slots", b"%d" % self.slots),
        ]
        if reply.retry_after is not None:
            headers.append((b"retry-after", b"%d" % reply.retry_after))
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        except RuntimeError as error:  # uvloop's word for a connection that was reset meanwhile
            if "closed" not in str(error):
                raise
            metrics.count(self.metrics.refusals, ("reason", "client_gone"))

    async def _reply(self, scope: Scope, receive: Receive) -> _Reply:
        hold = Hold(self.admission)
        try:
            return await self._route(scope)(scope, receive, hold)
        except _Answer as answer:
            return _failure(answer)
        except (wire.InvalidRequest, RequestError) as error:
            return _failure(_Answer(422, "invalid", _validation(error)))
        except _ClientGone:
            raise
        except Exception:
            logger.exception("a bug in the sandbox service")
            text = "the sandbox service has a bug; its log says more"
            return _failure(_Answer(500, "bug", text))
        finally:
            hold.release()

    def _route(self, scope: Scope) -> Handler:
        method, path = scope["method"], scope["path"]
        handler = self._routes.get((method, path))
        if handler is None:
            if any(path == known for _, known in self._routes):
                raise _Answer(405, "method", f"{path} does not take {method}")
            raise _Answer(404, "not_found", f"no {path} here; see the documentation's endpoints")
        if self._token is not None and path not in OPEN_PATHS:
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if not hmac.compare_digest(given, self._token):
                raise _Answer(401, "unauthorized", "send the header 'Authorization: Bearer TOKEN'")
        return handler

    async def _run_code(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        data = await self._body(scope, receive, hold)
        body = wire.decode_request(data)
        request = wire.to_request(body)
        self._check(request)
        if body.expect_instance not in (None, self.instance):
            text = "the session lived in a sandbox process that is gone; its state is lost"
            raise _Answer(409, "session_lost", text)
        try:
            result = await self._run(request, receive)
        except SandboxError as error:
            return self._broken(error, wire.RunCodeResponse(status="SandboxError"))
        response = wire.from_result(result, self.instance)
        response.executor_pod_name = self._pod
        return _Reply(wire.encode(response))

    async def _run_jupyter(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        data = await self._body(scope, receive, hold)
        body = jupyter.decode_request(data)
        request = jupyter.to_request(body)
        self._check(request)
        try:
            result = await self._run(request, receive)
        except SandboxError as error:
            return self._broken(error, jupyter.RunJupyterResponse(status="SandboxError"))
        response = jupyter.from_result(result, len(body.cells))
        response.executor_pod_name = self._pod
        return _Reply(wire.encode(response))

    async def _close_session(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        data = await self._body(scope, receive, hold)
        session = wire.decode_body(data, self._session_decoder).session
        await asyncio.to_thread(self.executor.close_session, session)
        return _Reply(b'{"status":"closed"}')

    async def _ping(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        return _Reply(b'"pong"')

    async def _health(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        draining = self.admission.draining
        state = {
            "status": "draining" if draining else "ok",
            "version": __version__,
            "instance": self.instance,
            "slots": self.slots,
            "running": self.admission.running,
            "waiting": self.admission.waiting,
            "isolation": str(getattr(self.executor, "isolation", "unknown")),
            "limits": self.policy.limits(),
        }
        return _Reply(wire.encode(state), 503 if draining else 200)

    async def _metrics(self, scope: Scope, receive: Receive, hold: Hold) -> _Reply:
        gauges = {
            "slots": float(self.slots),
            "running": float(self.admission.running),
            "waiting": float(self.admission.waiting),
            "held_bytes": float(self.admission.held_bytes),
        }
        return _Reply(self.metrics.text(gauges).encode(), content_type=metrics.CONTENT_TYPE)

    async def _body(self, scope: Scope, receive: Receive, hold: Hold) -> bytes:
        """Read the body, of which no byte is read before there is room for all of it.

        Without a length there must be room for every piece.
        """
        try:
            return await self._read(scope, receive, hold)
        except Refused as refused:
            self._refuse(refused.reason, str(refused))

    async def _read(self, scope: Scope, receive: Receive, hold: Hold) -> bytes:
        limit = self.policy.body_bytes
        length = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
        if not length.isdigit() or int(length) > limit:
            raise _Answer(413, "too_large", f"a body may have at most {limit} bytes")
        hold.reserve(int(length))
        chunks: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _Answer(413, "too_large", f"a body may have at most {limit} bytes")
            hold.reserve(size)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _check(self, request: RunRequest) -> None:
        limits, policy = request.limits, self.policy
        for name, value, most in (
            ("run_timeout", limits.wall_seconds, policy.run_seconds),
            ("compile_timeout", limits.compile_seconds, policy.run_seconds),
            ("memory_limit_MB", limits.memory_bytes / wire.MIB, policy.memory_bytes / wire.MIB),
            ("output_bytes", limits.output_bytes, policy.output_bytes),
            ("processes", limits.processes, policy.processes),
            ("file_bytes", limits.file_bytes, policy.file_bytes),
            ("cpu_seconds", limits.cpu_seconds or 0.0, policy.run_seconds),
        ):
            if value > most:
                text = f"{name} is {value:g}; this sandbox allows at most {most:g}"
                raise wire.InvalidRequest(text, (name,))

    async def _run(self, request: RunRequest, receive: Receive) -> RunResult:
        """Queue, run, count; stop early when the client hangs up."""
        watch = _Watch(receive)
        try:
            waited = await self.admission.enter(self.policy.queue_seconds)
            started = time.perf_counter()
            try:
                result = await self.executor.arun(request)
            finally:
                self.admission.leave(time.perf_counter() - started)
        except Refused as refused:
            self._refuse(refused.reason, str(refused))
        except asyncio.CancelledError:
            if watch.gone:
                raise _ClientGone from None
            raise
        finally:
            watch.stop()
        self.metrics.queue_seconds.observe(waited)
        self.metrics.run_seconds.observe(result.seconds)
        labels = (("language", request.language), ("outcome", result.status.value))
        metrics.count(self.metrics.runs, *labels)
        return result

    def _refuse(self, reason: str, text: str) -> NoReturn:
        metrics.count(self.metrics.refusals, ("reason", reason))
        raise _Answer(REFUSAL_STATUS[reason], reason, text, self.admission.retry_after)

    def _broken(self, error: SandboxError, response: Any) -> _Reply:
        """The sandbox failed: the protocol's own word for it, or a better status code."""
        if isinstance(error, LanguageUnavailable):
            detail = _validation(wire.InvalidRequest(str(error), ("language",)))
            raise _Answer(422, "language_unavailable", detail)
        if isinstance(error, SandboxOverloaded):
            self._refuse("overloaded", str(error))
        if isinstance(error, SandboxUnavailable):
            logger.error("the sandbox is unavailable: %s", error)
            self._refuse("unavailable", str(error))
        logger.error("the sandbox failed: %s", error)
        metrics.count(self.metrics.refusals, ("reason", "sandbox_error"))
        response.message = str(error)
        return _Reply(wire.encode(response))


class _ClientGone(Exception):
    """Nobody waits for the answer any more."""


class _Watch:
    """Cancels the current task when its client hangs up.

    The watching task costs as much as the rest of a short request, so it starts only when
    the request has lasted for a while.
    """

    def __init__(self, receive: Receive) -> None:
        loop = asyncio.get_running_loop()
        self.gone = False
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._timer = loop.call_later(WATCH_AFTER, self._start, loop)

    def stop(self) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watcher = loop.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._task is not None:
            self._task.cancel()


def _failure(answer: _Answer) -> _Reply:
    body: Mapping[str, Any] = {"detail": answer.detail, "error": answer.error}
    return _Reply(wire.encode(body), answer.status, retry_after=answer.retry_after)


def _validation(error: ValueError) -> list[dict[str, Any]]:
    """The shape that FastAPI gives to validation errors, which SandboxFusion's clients know."""
    location = error.location if isinstance(error, wire.InvalidRequest) else ()
    return [{"type": "value_error", "loc": ["body", *location], "msg": str(error)}]
