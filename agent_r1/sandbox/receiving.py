"""How requests may arrive: uvicorn's parser, bounded in bytes and in time before any handler.

Whoever reaches the port can send bytes, with or without a token. So the head of a request has
a size and a time, its body has a time, and what surrounds the body (the sizes of its pieces,
trailers) may not outweigh it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState


@dataclass(frozen=True, slots=True)
class Bounds:
    """``header_bytes`` also bounds the request line; times in seconds."""

    header_bytes: int
    header_seconds: float
    """From the connection, or from the first byte of a further request on it."""
    body_seconds: float
    """From the end of the head to the end of the body."""


class _TooLarge(ValueError):
    """Raised into the parser, which stops."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. ``bounds`` is set by :func:`bounded`."""

    bounds: Bounds

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any
    ) -> None:
        super().__init__(config, server_state, app_state, **more)
        self._deadline: asyncio.TimerHandle | None = None
        self._messages = 0
        self._in_head = False
        self._whole = True
        self._fields = 0
        """Bytes of the request line and of complete headers of this message."""
        self._raw = 0
        self._body = 0
        self._refusal = HTTPStatus.BAD_REQUEST

    # asyncio calls these
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.bounds.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before, in_head = self._messages, self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._whole:
            if self._messages == before:
                self._count(len(data))
            if in_head and not self._in_head:
                self._disarm()  # the head is there: now the body has its time
            self._arm(self.bounds.header_seconds if self._in_head else self.bounds.body_seconds)
        elif self._is_idle():
            self._arm(self.bounds.header_seconds)  # what came was no part of a request
        else:
            self._disarm()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._raw += size
        if self._raw - self._body > self.bounds.header_bytes + self._body:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response("")

    # httptools calls these
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._in_head, self._whole = True, False
        self._fields = self._raw = self._body = 0

    def on_url(self, url: bytes) -> None:
        self._add(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._add(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()

    def _add(self, size: int) -> None:
        self._fields += size
        if self._fields > self.bounds.header_bytes:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _TooLarge

    def send_400_response(self, msg: str) -> None:
        """Whatever is wrong with what arrived: one short answer, and the connection's end."""
        self._disarm()
        status = self._refusal
        text = f'{{"detail":"{status.phrase}","error":"http"}}'
        answer = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
        )
        if self._is_idle():  # else it would come into the middle of another answer
            self.transport.write(answer.encode("ascii"))
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        """Too slow, unless it could not be read because an earlier request is answered first."""
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.pipeline or (self._in_head and not self._is_idle()):
            self._arm(self.bounds.header_seconds)
            return
        self._refusal = HTTPStatus.REQUEST_TIMEOUT
        self.send_400_response("")


def bounded(bounds: Bounds) -> type[BoundedProtocol]:
    """The protocol class for these bounds, as uvicorn takes it."""
    return type("Bounded", (BoundedProtocol,), {"bounds": bounds})
