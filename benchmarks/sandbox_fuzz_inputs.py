"""What the fuzz sends: right requests with odd values, and mutations of their bytes."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

RECORD = json.dumps(
    [
        {"stdout": "a", "stderr": "", "display": [{"text/plain": "1"}], "error": []},
        {"stdout": "", "stderr": "", "display": [], "error": [{"ename": "E", "traceback": ["x"]}]},
    ]
).encode()
TOKENS = (
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"null", b"NaN", b"Infinity", b"-1"),
    *(b"1e999", b"9" * 40, b"18446744073709551615", b"9223372036854775808", b"0.0", b"true"),
    *(b'"', b"\\", b"{", b"}", b"[" * 3000, b"]", b":", b",", b"\r\n", b"\n", b" " * 500),
    *(b'{"a":' * 2000, b"/../", b"\xf0\x9f\x8e\xb2", b"0x10", b"Content-Length: 3\r\n"),
)
NUMBERS = (
    0,
    -1,
    1,
    3,
    0.3,
    1e-9,
    1e308,
    2**31,
    2**63,
    2**64,
    2**80,
    -0.5,
    "2",
    "nan",
    "",
    None,
    [],
)
TEXTS = (
    "",
    "x",
    "\x00",
    "\ud800",
    "a" * 300,
    "../x",
    "/x",
    "a/b",
    "a",
    ".",
    "é/ü",
    "\n",
    "a//b",
    "~",
)
PROGRAMS = (
    "print(1)",
    "raise MemoryError",
    "x = bytearray(1 << 34)",
    "import os; os.write(1, os.urandom(5000)); os._exit(3)",
    "import os; os.kill(0, 9)",
    "while True: pass",
    "while True: print('x' * 9999)",
    "import os; os.mkfifo('a'); os.symlink('/dev/zero', 'b')",
    "import os\nfor n in range(500):\n    os.makedirs('a'); os.chdir('a')",
    "import os\nos.write(2, b'MemoryError')\nos.abort()",
    "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff) R 1\\n'); time.sleep(0.2)",
    "import os\nfor _ in range(20):\n    if not os.fork(): os.setsid(); import time; time.sleep(9)",
    "open('a', 'wb').truncate(1 << 40)",
    "open('a', 'wb').write(bytes(1 << 20))",
    "import sys; sys.setrecursionlimit(10**8)\ndef f(): f()\nf()",
    "import os; os.close(0); os.close(1); os.close(2)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTKFLT)",
    "import numpy; numpy.zeros(1 << 40)",
    "import socket; s = [socket.socketpair() for _ in range(100)]; print(len(s))",
    "\ud800 = 1",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
)
FORGERIES = (
    "import os\nopen('{record}', 'wb').write(os.urandom(4000)); os._exit(0)",
    "import os\nopen('{record}', 'w').write('[' * 90000); os._exit(0)",
    "import os\nos.mkdir('{record}'); os._exit(0)",
    "import os\nos.symlink('/dev/zero', '{record}'); os._exit(0)",
    "import os\nopen('{record}', 'wb').truncate(40 << 20); os._exit(0)",
    "import os\nopen('{record}', 'w').write('[{{\"display\": [{{\"a\": ' + '[' * 400); os._exit(0)",
    "import os; os.chdir('/'); print(1)",
    "%pip install x\n!ls\n%%time",
    "%%time\n1 + 1",
    "1 / 0",
    "raise SystemExit(3)",
    "class A:\n    def __repr__(self): return '\\ud800' * 9\nA()",
    "display(1, 'x')\n!echo {{x}}",
    "import time; time.sleep(9)",
)
LANGUAGES = ("python",) * 12 + ("bash", "cpp", "nodejs", "pytest", "cobol", "", "perl")


def body(chance: random.Random) -> dict[str, Any]:
    """A request of ``/run_code``: right in most fields, odd in some."""
    found: dict[str, Any] = {
        "code": chance.choice(PROGRAMS),
        "language": chance.choice(LANGUAGES),
        "run_timeout": chance.choice((0.3, 0.5, 1)),
        "compile_timeout": 2,
    }
    odd = {
        "memory_limit_MB": lambda: chance.choice((64, 128, *NUMBERS)),
        "stdin": lambda: chance.choice((*TEXTS, "x" * 90000)),
        "files": lambda: files(chance),
        "fetch_files": lambda: chance.choices(TEXTS, k=chance.randrange(4)),
        "seed": lambda: chance.choice(NUMBERS),
        "session": lambda: f"fuzz-{chance.randrange(3)}",
        "last_expression": lambda: chance.choice((True, False, "true", 3)),
        "limits": lambda: limits(chance),
        "expect_instance": lambda: chance.choice(TEXTS),
        "run_timeout": lambda: chance.choice(NUMBERS),
        "unknown": lambda: TEXTS,
    }
    for name in chance.sample(sorted(odd), chance.choice((0, 1, 1, 2, 3, 6))):
        found[name] = odd[name]()
    return found


def limits(chance: random.Random) -> dict[str, Any]:
    names = ("cpu_seconds", "memory_bytes", "output_bytes", "processes", "file_bytes")
    odd: dict[str, Any] = {
        name: chance.choice((*NUMBERS, 1 << 20, 1 << 27))
        for name in chance.sample(names, chance.randrange(4))
    }
    return {"wall_seconds": chance.choice((0.3, 0.5)), **odd}


def files(chance: random.Random) -> dict[str, Any]:
    contents = (None, "", "eA==", "!", "e A = =", base64.b64encode(bytes(5000)).decode())
    return {chance.choice(TEXTS): chance.choice(contents) for _ in range(chance.randrange(5))}


def notebook(chance: random.Random) -> dict[str, Any]:
    """A request of ``/run_jupyter``."""
    cells = chance.choices((*FORGERIES, *PROGRAMS), k=chance.randrange(4))
    found: dict[str, Any] = {
        "cells": [cell.replace("{record}", ".notebook_record.json") for cell in cells],
        "total_timeout": 1,
        "cell_timeout": chance.choice((0, 0.3, *NUMBERS)),
    }
    if chance.random() < 0.3:
        found["files"] = files(chance)
    if chance.random() < 0.3:
        found["fetch_files"] = chance.choices(TEXTS, k=2)
    return found


def mutated(chance: random.Random, data: bytes) -> bytes:
    """One random change."""
    at, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    kind = chance.randrange(6)
    if kind == 0:
        return data[:at] + chance.choice(TOKENS) + data[at:]
    if kind == 1:
        return data[:at] + chance.choice(TOKENS) + data[end:]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[end:]
    if kind == 4:
        return data[:end] + data[at:]
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def raw_request(chance: random.Random) -> bytes:
    """The bytes of a connection: mostly one request, in which something may be wrong anywhere."""
    path, content = chance.choice(
        (("/run_code", body), ("/run_code", body), ("/run_jupyter", notebook))
    )
    data = json.dumps(content(chance)).encode()
    while chance.random() < 0.3:
        data = mutated(chance, data)
    method = "POST"
    if chance.random() < 0.1:
        method = chance.choice(("GET", "PUT", "HEAD", "post", "P\x00ST", ""))
        path = chance.choice(("/health", "/metrics", "/v1/ping", "/close_session", "/x", "*", "//"))
    request = framed(chance, f"{method} {path} HTTP/1.1", data)
    while chance.random() < 0.15:
        request = mutated(chance, request)
    if chance.random() < 0.05:
        request += request
    return request


def framed(chance: random.Random, line: str, data: bytes) -> bytes:
    """A head and a body that fit together, or do not."""
    kind = chance.randrange(14)
    headers = ["Host: x"]
    if kind == 0:
        headers += ["Transfer-Encoding: chunked"]
        sizes = chance.choice((b"%x\r\n", b"%x;a=b\r\n", b"0%x\r\n", b"-%x\r\n", b"%xz\r\n"))
        data = (
            sizes % len(data) + data + b"\r\n0\r\n" + chance.choice((b"\r\n", b"A: b\r\n\r\n", b""))
        )
    elif kind == 1:
        number = chance.choice((0, len(data) - 1, len(data) + 1, -1, 1 << 40, 1 << 70))
        headers += [f"Content-Length: {number}"]
    elif kind == 2:
        headers += [f"Content-Length: {len(data)}", "Transfer-Encoding: chunked"]
    else:
        headers += [f"Content-Length: {len(data)}"]
    if kind == 3:
        headers += [f"X-{number}: {'y' * 99}" for number in range(chance.choice((5, 900)))]
    elif kind == 4:
        headers += ["Expect: 100-continue", "Connection: close"]
    elif kind == 5:
        headers += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA=="]
    return "\r\n".join([line, *headers, "", ""]).encode("latin-1") + data
