"""The web application on the loopback interface: ``agent-r1 view`` without ``--export``."""

from __future__ import annotations

import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from threading import Lock, Thread

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent_r1.errors import DataError
from agent_r1.under_way import under_way
from agent_r1.viewer.access import Access
from agent_r1.viewer.api import Api
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.run_view import RunView
from agent_r1.viewer.served import Assets
from agent_r1.viewer.spelling import SpellingOf

HOST = "127.0.0.1"
_ASSETS = Path(str(files("agent_r1.viewer").joinpath("assets")))


def make_app(catalog: Catalog, token: str, tokenizer: Path | None = None) -> Starlette:
    """The ASGI application; ``tokenizer`` is a model folder to use for every run."""
    assets = Assets(_ASSETS)
    page = assets.page()

    async def index(request: Request) -> Response:
        return Response(page, media_type="text/html")

    routes = [
        Route("/", index),
        *Api(catalog, _spellings(tokenizer)).routes(),
        Route("/assets/{name:path}", assets.serve),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Access, token=token)])


class Server:
    """The application on a port of the loopback interface, for as long as it is entered.

    ``port`` 0 takes a free one. ``address`` carries the token.

    Raises:
        DataError: the port is taken.
    """

    def __init__(self, catalog: Catalog, port: int = 0, tokenizer: Path | None = None) -> None:
        self._catalog = catalog
        token = secrets.token_urlsafe(16)
        self._listener = _listen(port)
        self.address = f"http://{HOST}:{self._listener.getsockname()[1]}/?token={token}"
        settings = uvicorn.Config(
            make_app(catalog, token, tokenizer),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(settings)
        self._thread = Thread(target=self.run, daemon=True)

    def run(self) -> None:
        """Serve in this thread, until Ctrl-C where it is the main one."""
        self._uvicorn.run(sockets=[self._listener])

    def close(self) -> None:
        self._listener.close()
        self._catalog.close()

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()
        self.close()


def serve(
    roots: Sequence[Path],
    *,
    port: int = 0,
    browser: bool = True,
    tokenizer: Path | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until Ctrl-C; ``ready`` is told the address.

    Raises:
        DataError: no run is in the folders, or the port is taken.
    """
    catalog = Catalog(roots)
    with under_way("looking for runs"):
        found = catalog.runs()
    if not found:
        raise DataError(
            f"there is no run in {', '.join(map(str, roots))}; give the folder that training or "
            "evaluation wrote, or one above it"
        )
    server = Server(catalog, port, tokenizer)
    Thread(target=_read_ahead, args=(catalog,), daemon=True).start()
    ready(server.address)
    if browser:
        webbrowser.open(server.address)  # the listener queues what comes before the first accept
    try:
        server.run()
    finally:
        server.close()


def _read_ahead(catalog: Catalog) -> None:
    """Read the runs' metrics and settings while the browser starts, which then asks for them."""
    for run in catalog.runs():
        run.summary()
        run.comparable()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise DataError(f"port {port} of {HOST} cannot be used ({error.strerror})") from error
    return listener


def _spellings(given: Path | None) -> Callable[[RunView], SpellingOf]:
    known: dict[str, SpellingOf] = {}
    lock = Lock()

    def spelling_of(run: RunView) -> SpellingOf:
        with lock:
            return known.setdefault(run.key, SpellingOf(run.path, given))

    return spelling_of
