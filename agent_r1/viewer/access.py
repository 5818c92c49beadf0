"""Who may read the application: people on this machine who know its token.

What a run wrote is private (prompts, answers, settings), and any page that a browser has open
may try addresses on the loopback interface. Four things stand against that, in this order:

* the ``Host`` must be a name of the loopback interface, so that a foreign name that resolves
  to 127.0.0.1 (DNS rebinding) gets nothing;
* a request that a foreign page sends is refused (``Origin``, ``Sec-Fetch-Site``);
* only ``GET`` and ``HEAD`` are answered: there is nothing to write;
* a token of 128 random bits, once in the address, then in a cookie that scripts cannot read
  and that other sites' requests do not carry.

Not protected: against other users of this machine who can read the process's command line or
memory, and against programs of the same user, who can read the runs themselves.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from secrets import compare_digest
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: files of this server and nothing else; no text may become markup."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_REFUSED = "Open the address that agent-r1 view printed: it carries the token of this server.\n"


class Access:
    """ASGI middleware that lets through what the module's docstring allows."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        cookie = f"agent_r1_view_{_port(headers.get('host', ''))}"
        refusal = _refusal(scope["method"], headers)
        fresh = refusal is None and self._is_token(given)
        if refusal is None and not fresh and not self._is_token(_cookie(headers, cookie)):
            refusal = PlainTextResponse(_REFUSED, 401)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer[name] = value
                if fresh:
                    answer["Set-Cookie"] = (
                        f"{cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
                    )
            await send(message)

        await (refusal or self._app)(scope, receive, guarded)

    def _is_token(self, text: str) -> bool:
        return compare_digest(text.encode(), self._token.encode())


def _refusal(method: str, headers: Headers) -> PlainTextResponse | None:
    host = headers.get("host", "")
    if _hostname(host) not in LOOPBACK:
        return PlainTextResponse("This server answers to 127.0.0.1 and localhost only.\n", 421)
    if method not in ("GET", "HEAD"):
        return PlainTextResponse("There is nothing to write here.\n", 405)
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return PlainTextResponse("Requests of other pages are refused.\n", 403)
    site = headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") and headers.get("sec-fetch-mode") != "navigate":
        return PlainTextResponse("Requests of other pages are refused.\n", 403)
    return None


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _port(host: str) -> int:
    try:
        return urlsplit(f"//{host}").port or 80
    except ValueError:
        return 0


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
