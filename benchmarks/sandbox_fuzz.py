"""Send the sandbox what nobody would: random requests, random bytes, programs that forge.

Two parts, each for a time. *Parsers*: every function of the host that reads what a program or
a client can write gets mutations of right inputs; it may refuse them in its own way and in no
other. *Service*: a real service is sent mutated HTTP and JSON over many connections, and
programs whose files, names, records and output are odd. Checked is that

- no answer is 500, and none says that the sandbox failed: nothing of the sandbox is killed
  here, so whatever fails is the program's or the request's fault;
- the service answers an honest request at the end as at the beginning;
- its open files, by kind, and its memory have not grown.

    python benchmarks/sandbox_fuzz.py --seconds 180

A failure is printed with the seed and the bytes that caused it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox_fuzz_inputs import RECORD, body, mutated, notebook, raw_request

from agent_r1.errors import LanguageUnavailable, SandboxError
from agent_r1.sandbox import jupyter, wire
from agent_r1.sandbox.base import RunResult, RunStatus
from agent_r1.sandbox.exchange import Stream
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.jobs import RequestError, plan

CONNECTIONS = 12
ANSWER_SECONDS = 60.0
ALLOWED = {100, 200, 400, 401, 404, 405, 408, 409, 413, 422, 429, 431, 503, 504}
GROWTH_BYTES = 24 << 20
"""Between the middle and the end; the heap of a service breathes by a few MiB."""
SERVER = """
import os, signal, sys, threading
from agent_r1.sandbox.embedded import EmbeddedExecutor
from agent_r1.sandbox.serve import serve
from agent_r1.sandbox.service import ServicePolicy
def end_with_parent():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
executor = EmbeddedExecutor(workers=8, max_sessions=8)
policy = ServicePolicy(header_seconds=2.0, body_seconds=2.0, run_seconds=20.0, memory_bytes=1 << 30)
try:
    serve(executor, port=0, policy=policy, ready=lambda url: print(url, flush=True))
finally:
    executor.close()
"""


@dataclass
class Found:
    """What was done, and what was wrong."""

    tally: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)

    def report(self, what: str, data: bytes) -> None:
        self.tally["problem"] += 1
        kind = what[:16]
        self.kinds[kind] += 1
        if self.kinds[kind] < 3:
            self.problems.append(f"{what}\n    {data[:600]!r}")


# --- parsers --------------------------------------------------------------------------------


def read_files(data: bytes) -> None:
    messages.unpack_files(data, 9)


def read_record(data: bytes) -> None:
    result = RunResult(status=RunStatus.SUCCESS, files={jupyter.RECORD_FILE: data})
    wire.encode(jupyter.from_result(result, 2))


def read_request(data: bytes) -> None:
    with contextlib.suppress(wire.InvalidRequest, RequestError, LanguageUnavailable):
        plan(wire.to_request(wire.decode_request(data)))


def read_notebook(data: bytes) -> None:
    with contextlib.suppress(wire.InvalidRequest, RequestError):
        plan(jupyter.to_request(jupyter.decode_request(data)))


def read_answer(data: bytes) -> None:
    with contextlib.suppress(SandboxError):
        wire.to_result(data)


def read_output(data: bytes) -> None:
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    try:
        os.write(theirs, data[:4096])
        stream = Stream(ours, 512)
        stream.drain()
        wire.encode(stream.text())
    finally:
        os.close(ours)
        os.close(theirs)


def packed() -> bytes:
    """The files of a program, as its collector writes them."""
    sources = [os.memfd_create("content") for _ in range(2)]
    target = os.memfd_create("files")
    for source in sources:
        os.pwrite(source, bytes(range(200)), 0)
    messages.write_files(target, zip((b"a", b"b/c"), sources, strict=True), 300)
    data = os.pread(target, 4096, 0)
    for descriptor in (*sources, target):
        os.close(descriptor)
    return data


FILES = packed()
ANSWER = wire.encode(
    wire.from_result(
        RunResult(
            status=RunStatus.ERROR,
            stdout="out",
            stderr="err",
            exit_code=1,
            files={"a": b"x"},
            compile=RunResult(status=RunStatus.SUCCESS),
        ),
        "instance",
    )
)
Parser = tuple[Callable[[bytes], None], Callable[[random.Random], bytes]]
PARSERS: dict[str, Parser] = {
    "files": (read_files, lambda chance: FILES),
    "record": (read_record, lambda chance: RECORD),
    "request": (read_request, lambda chance: encoded(body(chance))),
    "notebook": (read_notebook, lambda chance: encoded(notebook(chance))),
    "answer": (read_answer, lambda chance: ANSWER),
    "output": (read_output, lambda chance: "π\n€".encode() * 40),
}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def fuzz_parsers(chance: random.Random, seconds: float, found: Found) -> None:
    until = time.monotonic() + seconds
    middle, before = until - seconds / 2, (0, 0)
    while time.monotonic() < until:
        for name, (parse, make) in PARSERS.items():
            data = make(chance)
            for _ in range(chance.choice((0, 1, 1, 2, 8))):
                data = mutated(chance, data)
            try:
                parse(data)
            except Exception as error:
                found.report(f"{name}: {type(error).__name__}: {error}", data)
            found.tally[f"parsed: {name}"] += 1
        if not before[0] and time.monotonic() > middle:
            before = (resident(os.getpid()), len(os.listdir("/proc/self/fd")))
    after = (resident(os.getpid()), len(os.listdir("/proc/self/fd")))
    found.figures["parsers: memory and open files, middle and end"] = [before, after]
    if after[0] - before[0] > GROWTH_BYTES or after[1] > before[1]:
        found.report(f"parsers grew from {before} to {after}", b"")


# --- service --------------------------------------------------------------------------------


async def fuzz_service(chance: random.Random, seconds: float, found: Found) -> None:
    with running() as (child, url):
        host, port = url.removeprefix("http://").rsplit(":", 1)
        honest = encoded({"code": "print(6 * 7)", "language": "python"})

        async def ask(data: bytes, patience: float = ANSWER_SECONDS) -> bytes:
            return await exchange(host, int(port), data, patience)

        await warm(ask)
        found.figures["service before"] = state(child.pid)
        until = time.monotonic() + seconds
        hammers = [
            hammer(random.Random(chance.random()), ask, until, found) for _ in range(CONNECTIONS)
        ]
        whole = asyncio.gather(*hammers)
        await asyncio.sleep(seconds / 2)
        middle = await settled(child.pid, found.figures["service before"], wait=0)
        await whole
        answer = await ask(post("/run_code", honest))
        if b'"stdout":"42\\n"' not in answer:
            found.report("an honest request was not answered", answer)
        await warm(ask)
        after = await settled(child.pid, found.figures["service before"], wait=30)
        found.figures["service middle"] = middle
        found.figures["service after"] = after
        compare(found)
        if child.poll() is not None:
            found.report(f"the service ended with {child.returncode}", b"")


def compare(found: Found) -> None:
    """Open files must be the same again; the heap may breathe."""
    before, middle, after = (found.figures[f"service {at}"] for at in ("before", "middle", "after"))
    if beside_slots(after) != beside_slots(before):
        found.report(f"open files changed: {before['files']} → {after['files']}", b"")
    if after["resident"] - middle["resident"] > GROWTH_BYTES:
        found.report(f"memory grew: {middle['resident']} → {after['resident']}", b"")


def beside_slots(figures: dict[str, Any]) -> dict[str, int]:
    """Open files but for those of slots, two each: sessions of names that were made up have some.

    One socket more or less is a connection that is just being closed.
    """
    files = dict(figures["files"])
    slots = files.pop("memory.oom_control", 0)
    files["socket"] = (files["socket"] - slots + 1) // 2
    return files


async def settled(pid: int, before: dict[str, Any], wait: float) -> dict[str, Any]:
    """The state when connections are closed and what ran has ended, ``wait`` seconds at most."""
    until = time.monotonic() + wait
    while beside_slots(now := state(pid)) != beside_slots(before) and time.monotonic() < until:
        await asyncio.sleep(0.5)
    return now


async def warm(ask: Callable[[bytes], Any]) -> None:
    """All slots of every tier, and no session: then the number of open files is known."""
    codes = ("import time; time.sleep(1)", "import numpy", "import sympy", "import scipy")
    requests = [{"code": f"{code}\nimport time; time.sleep(2)"} for code in codes]
    requests.append({"code": "sleep 3", "language": "bash"})
    requests.append({"code": "import numpy, sympy, time; time.sleep(3)"})
    for request in requests:
        whole = encoded({"language": "python", **request})
        for answer in await asyncio.gather(*[ask(post("/run_code", whole)) for _ in range(8)]):
            assert b'"Success"' in answer, answer
    for number in range(3):
        name = encoded({"session": f"fuzz-{number}"})
        await ask(post("/close_session", name))


async def hammer(
    chance: random.Random, ask: Callable[[bytes], Any], until: float, found: Found
) -> None:
    while time.monotonic() < until:
        data = raw_request(chance)
        leaves = chance.random() < 0.1
        try:
            answer = await ask(data, chance.uniform(0, 0.3) if leaves else ANSWER_SECONDS)
        except TimeoutError:
            if not leaves:
                found.report("no answer", data)
            continue
        judge(answer, data, found)


def judge(answers: bytes, data: bytes, found: Found) -> None:
    """Every status line of a connection's answers, and what the bodies say."""
    codes = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]
    found.tally.update(f"answered: {code}" for code in codes or [0])
    for code in codes:
        if code not in ALLOWED:
            found.report(f"answered {code}: {answers[-300:]!r}", data)
    if b'"status":"SandboxError"' in answers:
        found.report(f"taken for the sandbox's fault: {answers[-300:]!r}", data)


async def exchange(host: str, port: int, data: bytes, patience: float = ANSWER_SECONDS) -> bytes:
    """All that comes back before the server closes, or stops answering a finished request."""
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    answer = b""
    try:
        async with asyncio.timeout(patience):
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                while piece := await reader.read(1 << 16):
                    answer += piece
                    if complete(answer) or data.lstrip().startswith(b"HEAD "):
                        break
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return answer


def complete(answer: bytes) -> bool:
    """Whether one whole answer is there: after that a kept connection stays silent."""
    head, gap, rest = answer.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):  # the word to go on is not the answer
        head, gap, rest = rest.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    return bool(gap and found and len(rest) >= int(found[1]))


def post(path: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@contextlib.contextmanager
def running() -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdin is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.send_signal(signal.SIGTERM)
        child.stdin.close()
        child.wait(120)
        child.stdout.close()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def state(pid: int) -> dict[str, Any]:
    """Resident bytes, and open files by kind."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            place = os.readlink(f"/proc/{pid}/fd/{name}")
            if place.startswith("/sys/fs/cgroup/"):  # that of which slot is no matter
                place = os.path.basename(place)
            kinds[re.sub(r"[:\d\[\]]+$", "", place)] += 1
    return {"resident": resident(pid), "files": dict(sorted(kinds.items()))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="of each of the two parts")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--part", choices=("parsers", "service", "both"), default="both")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    found = Found()
    if options.part != "service":
        fuzz_parsers(random.Random(seed), options.seconds, found)
    if options.part != "parsers":
        asyncio.run(fuzz_service(random.Random(seed), options.seconds, found))
    print(f"seed {seed}")
    for name, number in sorted(found.tally.items()):
        print(f"{name}: {number}")
    for name, figure in found.figures.items():
        print(f"{name}: {figure}")
    print("\n".join(found.problems) or "nothing wrong")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
