"""The client of the service: an :class:`Executor` over any number of sandboxes.

One-shot programs cannot touch anything that outlives them, so running one twice is harmless
and a lost answer is asked for again, elsewhere when there is an elsewhere. A session is
state: its requests stay with the process that holds it, are repeated only when that process
cannot have seen them, and fail with a typed error when it is gone. Nothing is ever guessed
from a broken answer.

Any SandboxFusion server may stand at an endpoint. It knows neither seeds nor sessions nor
values of last expressions; asking one for them is an error, not a silent omission.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from msgspec import UnsetType

from agent_r1.errors import (
    LanguageUnavailable,
    SandboxError,
    SandboxOverloaded,
    SandboxUnavailable,
)
from agent_r1.http1 import Address, Pool, Response, TransportError
from agent_r1.sandbox import wire
from agent_r1.sandbox.base import RunRequest, RunResult
from agent_r1.sandbox.endpoints import Balancer, Endpoint
from agent_r1.sandbox.jobs import RequestError

ENDPOINT_VARIABLE = "SANDBOX_FUSION_ENDPOINT"
TOKEN_VARIABLE = "AGENT_R1_SANDBOX_TOKEN"
DEFAULT_ENDPOINT = "http://127.0.0.1:8080"
GRACE_SECONDS = 15.0
"""Beyond a program's own limits and the queue, until an answer counts as lost."""
HEARTBEAT_SECONDS = 5.0
LATER = (429, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """How long and how often the client tries."""

    attempts: int = 3
    """Answers that may be lost or broken for one program before it is given up."""
    patience_seconds: float = 120.0
    """How long a program may find every endpoint dead or full. A restart fits into this."""
    queue_seconds: float = 300.0
    """How long a program may wait in an endpoint's queue."""
    connect_seconds: float = 5.0
    in_flight: int = 512
    """Programs under way at once; more wait here. Each has a connection, so an open file."""


class SandboxClient:
    """Runs programs on remote sandboxes. Thread-safe; usable from any event loop.

    ``endpoints``: URLs, as a sequence or separated by commas; by default the environment
    variable ``SANDBOX_FUSION_ENDPOINT``, then port 8080 of this host. ``token``: by default
    ``AGENT_R1_SANDBOX_TOKEN``.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        policy: ClientPolicy | None = None,
    ) -> None:
        if endpoints is None:
            endpoints = os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT
        urls = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
        self.addresses = tuple(
            Address.parse(url, "sandbox endpoint") for url in urls if url.strip()
        )
        if not self.addresses:
            raise SandboxUnavailable("no sandbox endpoint is given; name at least one URL")
        self._token = token or os.environ.get(TOKEN_VARIABLE) or None
        self._policy = policy or ClientPolicy()
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False

    def run(self, request: RunRequest) -> RunResult:
        future = self._submit(request)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def arun(self, request: RunRequest) -> RunResult:
        """As :meth:`run`. Cancelling hangs up, which ends the program on our own service."""
        return await asyncio.wrap_future(self._submit(request))

    def close_session(self, session: str) -> None:
        worker = self._worker
        if worker is not None and session in worker.courier.sessions:
            worker.submit(worker.courier.close_session(session)).result()

    def close(self) -> None:
        with self._lock:
            worker, self._worker, self._closed = self._worker, None, True
        if worker is not None:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(self, request: RunRequest) -> Future[RunResult]:
        with self._lock:
            if self._closed:
                raise SandboxUnavailable("this client was closed; make a new one")
            if self._worker is None or self._worker.pid != os.getpid():
                self._worker = _Worker(_Courier.of(self.addresses, self._token, self._policy))
            worker = self._worker
        return worker.submit(worker.courier.deliver(request))


class _Worker:
    """A thread with an event loop, on which all of a client's connections live.

    One loop serves blocking callers and every event loop of the program alike. It is
    remade after a fork, which threads do not survive.
    """

    def __init__(self, courier: _Courier) -> None:
        self.pid = os.getpid()
        self.courier = courier
        self._loop = _new_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="sandbox-client", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self.pid, self._loop, self._thread, courier)

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        self._finalizer()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _stop(
    pid: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread, courier: _Courier
) -> None:
    """End the worker's thread. In a forked child there is none; nor may it wait for itself."""
    if pid != os.getpid() or threading.current_thread() is thread:
        return

    async def finish() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        courier.close()
        await asyncio.sleep(0)  # aborted connections are lost in the next round

    asyncio.run_coroutine_threadsafe(finish(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@dataclass(slots=True)
class _Trouble:
    """What went wrong so far with one program, and when that is enough."""

    policy: ClientPolicy
    lost: int = 0
    since: float | None = None
    last: SandboxError | None = None

    def refused(self, error: SandboxError) -> None:
        """The program did not run. Raises ``error`` when patience is at its end."""
        now = time.monotonic()
        self.since = self.since or now
        self.last = error
        if now - self.since > self.policy.patience_seconds:
            raise error

    def broke(self, error: SandboxError) -> None:
        """The program may have run. Raises ``error`` after too many of these."""
        self.lost += 1
        self.last = error
        if self.lost >= self.policy.attempts:
            raise error


@dataclass(slots=True)
class _Home:
    """Where a session lives: the endpoint, and the very process behind it."""

    endpoint: Endpoint
    instance: str


@dataclass(slots=True)
class _Courier:
    """Carries programs to endpoints and results back, on one event loop."""

    policy: ClientPolicy
    balancer: Balancer
    pools: dict[str, Pool]
    gate: asyncio.Semaphore
    sessions: dict[str, _Home] = field(default_factory=dict)
    tasks: dict[str, set[asyncio.Task[Response]]] = field(default_factory=dict)
    hearts: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @classmethod
    def of(cls, addresses: Sequence[Address], token: str | None, policy: ClientPolicy) -> _Courier:
        pools = {a.url: Pool(a, token, policy.connect_seconds) for a in addresses}
        return cls(policy, Balancer.of(pools), pools, asyncio.Semaphore(policy.in_flight))

    async def deliver(self, request: RunRequest) -> RunResult:
        """Until there is a result or a reason to give up."""
        async with self.gate:
            home = self.sessions.get(request.session) if request.session is not None else None
            body = wire.encode(wire.from_request(request, home.instance if home else None))
            trouble = _Trouble(self.policy)
            while True:
                endpoint = home.endpoint if home else await self._available(trouble)
                response = await self._attempt(endpoint, request, body, trouble, home)
                if response is None:
                    continue
                try:
                    result, answer = wire.to_result(response.body)
                except (SandboxError, wire.InvalidRequest) as error:
                    self.balancer.failed(endpoint)
                    broken = SandboxError(f"{endpoint.url}: {error}")
                    if home is not None:
                        raise broken from error
                    trouble.broke(broken)
                    continue
                self._remember(request, endpoint, answer)
                return result

    async def close_session(self, session: str) -> None:
        home = self.sessions.pop(session, None)
        if home is None:
            return
        body = wire.encode({"session": session})
        with contextlib.suppress(TransportError):
            await self.pools[home.endpoint.url].post("/close_session", body, GRACE_SECONDS)

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()

    async def _available(self, trouble: _Trouble) -> Endpoint:
        while (endpoint := self.balancer.pick()) is None:
            trouble.refused(trouble.last or SandboxUnavailable(self._nobody()))
            await asyncio.sleep(self.balancer.pause())
        return endpoint

    async def _attempt(
        self,
        endpoint: Endpoint,
        request: RunRequest,
        body: bytes,
        trouble: _Trouble,
        home: _Home | None,
    ) -> Response | None:
        """One exchange: a response of status 200, or ``None`` to go on, or a final error."""
        try:
            async with self._under_way(endpoint):
                response = await self._exchange(endpoint, request, body, home is not None)
        except TransportError as error:
            failure = SandboxUnavailable(f"the sandbox at {endpoint.url} does not answer: {error}")
            self.balancer.failed(endpoint)
            if not error.sent:
                trouble.refused(failure)
            elif home is not None:
                raise failure from error
            else:
                trouble.broke(failure)
            await self._pause(home)
            return None
        if response.status in LATER:
            self.balancer.busy(endpoint, _retry_after(response))
            trouble.refused(SandboxOverloaded(f"{endpoint.url}: {_detail(response)}"))
            await self._pause(home)
            return None
        if response.status != 200:
            self._final(endpoint, response, request)
            trouble.broke(SandboxError(f"{endpoint.url}: {_detail(response)}"))
            return None
        self.balancer.succeeded(endpoint, _slots(response))
        return response

    async def _pause(self, home: _Home | None) -> None:
        """A session has no other endpoint to go to: wait here instead of in ``_available``."""
        if home is not None:
            await asyncio.sleep(self.balancer.pause())

    async def _exchange(
        self, endpoint: Endpoint, request: RunRequest, body: bytes, fresh: bool
    ) -> Response:
        limits = request.limits
        own = limits.wall_seconds + limits.compile_seconds
        seconds = self.policy.queue_seconds + own + GRACE_SECONDS
        pool = self.pools[endpoint.url]
        try:
            return await self._watched(endpoint, pool.post("/run_code", body, seconds, fresh=fresh))
        except TransportError as error:
            if not error.stale or fresh:
                raise
        # A kept connection that the server closed before this request: not the server's fault.
        return await self._watched(endpoint, pool.post("/run_code", body, seconds, fresh=True))

    async def _watched(self, endpoint: Endpoint, work: Coroutine[Any, Any, Response]) -> Response:
        """Await ``work``; a missing heartbeat ends it as a lost answer."""
        task = asyncio.get_running_loop().create_task(work)
        under_way = self.tasks.setdefault(endpoint.url, set())
        under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                task.cancel()
                raise
            raise TransportError("its heartbeat stopped", sent=True) from None
        finally:
            under_way.discard(task)

    @contextlib.asynccontextmanager
    async def _under_way(self, endpoint: Endpoint) -> AsyncIterator[None]:
        """Count the request as load, and listen to the endpoint's heart meanwhile."""
        endpoint.in_flight += 1
        heart = self.hearts.get(endpoint.url)
        if heart is None or heart.done():
            loop = asyncio.get_running_loop()
            self.hearts[endpoint.url] = loop.create_task(self._listen(endpoint))
        try:
            yield
        finally:
            endpoint.in_flight -= 1

    async def _listen(self, endpoint: Endpoint) -> None:
        """Ask for a sign of life while requests are under way; two misses are a death.

        A stopped process or a lost host keeps connections open without ever answering.
        """
        missed = 0
        while endpoint.in_flight:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                await self.pools[endpoint.url].get("/v1/ping", 2 * HEARTBEAT_SECONDS)
                missed = 0
            except TransportError:
                missed += 1
            if missed >= 2:
                for task in self.tasks.get(endpoint.url, ()):
                    task.cancel()

    def _final(self, endpoint: Endpoint, response: Response, request: RunRequest) -> None:
        """Raise for answers that trying again cannot change; return for the others."""
        detail = f"{endpoint.url}: {_detail(response)}"
        if response.status >= 500:
            self.balancer.failed(endpoint)
            return
        self.balancer.succeeded(endpoint, _slots(response))
        if response.status == 422 and _error(response) == "language_unavailable":
            raise LanguageUnavailable(detail)
        if response.status == 409 and request.session is not None:
            self.sessions.pop(request.session, None)
        if response.status == 401:
            raise SandboxUnavailable(f"{detail}; set {TOKEN_VARIABLE} or give token=")
        if response.status in (404, 405):
            raise SandboxUnavailable(f"{detail}; this URL is no sandbox")
        if response.status in (413, 422):
            raise RequestError(detail)
        raise SandboxError(f"HTTP {response.status} from {detail}")

    def _remember(
        self, request: RunRequest, endpoint: Endpoint, answer: wire.RunCodeResponse
    ) -> None:
        asked = (request.session, request.seed, request.last_expression or None)
        if isinstance(answer.instance, UnsetType) and asked != (None, None, None):
            raise SandboxError(
                f"{endpoint.url} speaks SandboxFusion's protocol only, without sessions, seeds and "
                "values of last expressions; run 'agent-r1 sandbox serve' there"
            )
        if request.session is not None and not isinstance(answer.instance, UnsetType):
            self.sessions[request.session] = _Home(endpoint, answer.instance)

    def _nobody(self) -> str:
        return "no sandbox answers at " + ", ".join(e.url for e in self.balancer.endpoints)


def _slots(response: Response) -> int | None:
    text = response.headers.get(b"x-sandbox-slots", b"")
    return int(text) if text.isdigit() else None


def _retry_after(response: Response) -> float:
    text = response.headers.get(b"retry-after", b"")
    return float(text) if text.isdigit() else 1.0


def _fields(response: Response) -> dict[str, Any]:
    try:
        body = json.loads(response.body)
    except ValueError:
        body = None
    return (
        body if isinstance(body, dict) else {"detail": response.body[:200].decode(errors="replace")}
    )


def _error(response: Response) -> str:
    return str(_fields(response).get("error", ""))


def _detail(response: Response) -> str:
    """What the server said, as one line."""
    detail = _fields(response).get("detail", "")
    if isinstance(detail, list):
        detail = "; ".join(str(item.get("msg", item)) for item in detail if isinstance(item, dict))
    return str(detail)
