"""What reaches the port before any handler: heads and bodies without end, or without haste."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from scripted_executor import ScriptedExecutor

from agent_r1.sandbox.serve import serving
from agent_r1.sandbox.service import ServicePolicy

HEAD = b"POST /run_code HTTP/1.1\r\nHost: a\r\n"
BODY = b'{"code": "hello", "language": "python"}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
PATIENT = {"header_seconds": 60.0, "body_seconds": 60.0}
HASTY = {"header_seconds": 0.3, "body_seconds": 0.3}


def connect(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def answer(connection):
    """Everything until the server closes, or what came before a reset."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def flood(connection, piece, most):
    """Send until the other side refuses; how many bytes it took."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (HEAD + b"X: ", b"x" * 65536),
        (b"POST /", b"x" * 65536),
        (HEAD, b"".join(b"h%d: x\r\n" % i for i in range(5000))),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"e" * 4000 + b"\r\nx\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nT: ", b"t" * 65536),
    ],
    ids=["one header", "target", "many headers", "chunk extensions", "trailer"],
)
def test_a_head_without_end_is_cut_off(start, piece):
    policy = ServicePolicy(token="t", **PATIENT)
    with serving(ScriptedExecutor(), policy=policy) as url, connect(url) as connection:
        connection.sendall(start)
        assert flood(connection, piece, 64 << 20) < 16 << 20
        assert httpx.get(url + "/v1/ping", trust_env=False).status_code == 200


def test_a_head_that_is_too_large_is_told_so():
    with serving(ScriptedExecutor(), policy=ServicePolicy(**PATIENT)) as url:
        fits = {"X": "x" * 50_000}
        too_large = {"X": "x" * 70_000}
        with httpx.Client(base_url=url, trust_env=False) as api:
            assert api.get("/v1/ping", headers=fits).status_code == 200
            assert api.get("/v1/ping", headers=too_large).status_code == 431


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"\r\n", b"408"),
        (HEAD, b"408"),
        (WHOLE + HEAD, b"408"),
        (WHOLE[:-1], b""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", b""),
    ],
    ids=["nothing", "empty line", "half a head", "second half head", "half a body", "chunked"],
)
def test_what_never_becomes_a_request_is_closed(sent, status):
    with serving(ScriptedExecutor(), policy=ServicePolicy(**HASTY)) as url:
        with connect(url) as connection:
            connection.sendall(sent)
            last = answer(connection).rpartition(b"HTTP/1.1 ")[2]
        assert last[:3] == status
        assert httpx.get(url + "/health", trust_env=False).json()["running"] == 0


def test_time_for_a_request_does_not_end_a_run():
    executor = ScriptedExecutor()
    executor.hold()
    with serving(executor, policy=ServicePolicy(**HASTY)) as url, connect(url) as connection:
        connection.sendall(WHOLE + HEAD)  # the second waits for the answer to the first
        threading.Timer(1.0, executor.release.set).start()
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        rest = WHOLE.removeprefix(HEAD)
        connection.sendall(rest)
        assert b"hello" in connection.recv(65536)
        time.sleep(0.5)  # idle between two requests, as clients keep connections
        connection.sendall(WHOLE)
        assert b"hello" in connection.recv(65536)


def test_bodies_have_room_before_they_are_read():
    """Eleven megabytes announced and not sent: there is room for five such."""
    policy = ServicePolicy(queue_bytes=60 << 20, **PATIENT)
    with serving(ScriptedExecutor(), policy=policy) as url:
        open_ones = [connect(url) for _ in range(5)]
        for connection in open_ones:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n{" % (11 << 20))
        with httpx.Client(base_url=url, trust_env=False) as api:
            while b"held_bytes 57671680" not in api.get("/metrics").content:
                time.sleep(0.02)
            reply = api.post("/run_code", content=b" " * (11 << 20))
            assert (reply.status_code, reply.json()["error"]) == (429, "full")
            assert "retry-after" in reply.headers
            small = api.post("/run_code", content=BODY)
            assert small.status_code == 200
            for connection in open_ones:
                connection.close()
            while b"held_bytes 0\n" not in api.get("/metrics").content:
                time.sleep(0.02)


def test_pieces_without_a_length_count_as_they_come():
    policy = ServicePolicy(queue_bytes=1 << 20, **PATIENT)
    with serving(ScriptedExecutor(), policy=policy) as url:
        pieces = (b" " * 65536 for _ in range(64))
        reply = httpx.post(url + "/run_code", content=pieces, trust_env=False)
        assert reply.status_code == 429


def test_the_limits_of_the_door_can_be_asked_for():
    policy = ServicePolicy(token="secret", header_bytes=9999)
    with serving(ScriptedExecutor(), policy=policy) as url:
        reply = httpx.get(url + "/health", trust_env=False)
    limits = reply.json()["limits"]
    assert limits["header_bytes"] == 9999
    assert limits["body_bytes"] == 64 << 20
    assert "secret" not in json.dumps(reply.json())
