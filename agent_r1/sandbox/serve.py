"""Starting and stopping the service: one process, one event loop, one executor."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from agent_r1.errors import ConfigError, SandboxUnavailable
from agent_r1.sandbox.base import Executor, RunRequest
from agent_r1.sandbox.service import SandboxService, ServicePolicy

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep unused connections, so that it is they who close them."""
WARM_UP = ("pass", "import numpy", "import sympy")
"""Programs run before the first request, so that a sandbox which cannot isolate says so at
once and nobody waits for libraries to load."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    executor: Executor,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    policy: ServicePolicy | None = None,
    drain_seconds: float = 60.0,
    allow_anonymous: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what runs and return.

    ``port`` 0 takes a free one; ``ready`` is called with the URL once connections are
    accepted. After ``drain_seconds`` running programs are cut off. Beyond the loopback
    interface a token is required, unless ``allow_anonymous`` says that the network is
    trusted. ``executor`` stays the caller's to close.

    Raises:
        ConfigError: the address cannot be served, or must not be without a token.
        SandboxError: the executor cannot run programs here; nothing was served.
    """
    policy = policy or ServicePolicy()
    if host not in LOOPBACK and policy.token is None and not allow_anonymous:
        raise ConfigError(
            f"{host} is reachable from other machines, and whoever reaches it may run programs; "
            "set a token, or say that anonymous use is meant (allow_anonymous)"
        )
    with contextlib.closing(_listen(host, port)) as listener:
        _allow_many_connections()
        for code in WARM_UP:
            executor.run(RunRequest(code=code))
        url = _url(listener)
        server = _server(SandboxService(executor, policy), drain_seconds, ready, url)
        server.run(sockets=[listener])


@contextlib.contextmanager
def serving(
    executor: Executor,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    policy: ServicePolicy | None = None,
    drain_seconds: float = 10.0,
) -> Iterator[str]:
    """A service in a thread of this process, for as long as the block lasts; yields its URL."""
    started = threading.Event()
    with contextlib.closing(_listen(host, port)) as listener:
        url = _url(listener)
        service = SandboxService(executor, policy)
        server = _server(service, drain_seconds, lambda _: started.set(), url)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="sandbox-service", daemon=True
        )
        thread.start()
        while not started.wait(0.05):
            if not thread.is_alive():
                raise SandboxUnavailable("the service did not start; its log says why")
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def _allow_many_connections() -> None:
    """Each waiting client holds a connection; the usual soft limit is 1024 open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=4096)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error}; choose another port, or 0 for a free one"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(
    service: SandboxService,
    drain_seconds: float,
    ready: Callable[[str], None] | None,
    url: str,
) -> uvicorn.Server:
    import uvicorn

    from agent_r1.sandbox.receiving import Bounds, bounded

    policy = service.policy

    class Server(uvicorn.Server):
        """Uvicorn, with a word to the outside when it starts and to the queue when it stops."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Without raising the signal again at the end: the caller has an executor to close."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            signals = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in signals}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready is not None and not self.should_exit:
                ready(url)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.drain()
            began = time.monotonic()
            await super().shutdown(sockets)
            logger.info("the sandbox service drained in %.1f s", time.monotonic() - began)

    return Server(
        uvicorn.Config(
            service,
            loop="uvloop",
            http=bounded(Bounds(policy.header_bytes, policy.header_seconds, policy.body_seconds)),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",  # else whoever reaches the port writes lines into the log
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
    )
