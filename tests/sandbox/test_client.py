"""Our client, against our service over a scripted executor and against scripted sockets."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scripted_executor import ScriptedExecutor

from agent_r1.errors import (
    ConfigError,
    LanguageUnavailable,
    SandboxError,
    SandboxOverloaded,
    SandboxUnavailable,
)
from agent_r1.sandbox.base import Executor, Limits, RunRequest, RunResult, RunStatus
from agent_r1.sandbox.client import ClientPolicy, SandboxClient
from agent_r1.sandbox.endpoints import LONGEST_REST, Balancer
from agent_r1.sandbox.jobs import RequestError
from agent_r1.sandbox.serve import serving
from agent_r1.sandbox.service import ServicePolicy

HELLO = RunRequest(code="hello")
IMPATIENT = ClientPolicy(patience_seconds=0.3, connect_seconds=1.0)


@contextlib.contextmanager
def scripted_server(*answers):
    """A TCP server that gives each connection's first request the next of ``answers``.

    An answer is the bytes to send, after which the connection is closed; ``None`` closes
    it without a word. The last answer is used again and again.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    seen, stop = [], threading.Event()

    def work():
        number = 0
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                while len(body) < length:
                    body += connection.recv(65536)
                seen.append((head, body))
                answer = answers[min(number, len(answers) - 1)]
                number += 1
                if answer is not None:
                    connection.sendall(answer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answer(status=200, body=None, *headers):
    payload = json.dumps(body if body is not None else good()).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(payload)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + payload


def good(stdout="ok", **more):
    run = {"status": "Finished", "return_code": 0, "stdout": stdout, "stderr": ""}
    return {"status": "Success", "message": "", "run_result": run, **more}


def test_the_client_is_an_executor():
    with SandboxClient("http://127.0.0.1:1") as client:
        assert isinstance(client, Executor)


def test_results_come_back_exactly():
    result = RunResult(
        status=RunStatus.MEMORY_LIMIT,
        stdout="é\x00",
        stderr="e",
        exit_code=-9,
        seconds=1.25,
        files={"a/b": b"\xff\x00"},
        compile=RunResult(status=RunStatus.SUCCESS, exit_code=0, seconds=0.5, stderr="warning"),
    )
    request = RunRequest(
        code="x",
        language="cpp",
        stdin="in",
        files={"f": b"\x00"},
        fetch_files=("a/b",),
        limits=Limits(wall_seconds=2.5, memory_bytes=12345, processes=3, cpu_seconds=1.5),
        seed=7,
        last_expression=True,
    )
    executor = ScriptedExecutor(lambda asked: result)
    with serving(executor) as url, SandboxClient(url) as client:
        assert client.run(request) == result
        assert asyncio.run(client.arun(request)) == result
    assert executor.requests == [request, request]


def test_many_threads_and_many_loops_share_one_client():
    executor = ScriptedExecutor(slots=8)
    with serving(executor) as url, SandboxClient(url) as client:

        async def several(start):
            runs = [client.arun(RunRequest(code=f"{start + i}")) for i in range(20)]
            return [result.stdout for result in await asyncio.gather(*runs)]

        with ThreadPoolExecutor(8) as threads:
            loops = list(threads.map(lambda start: asyncio.run(several(start)), range(0, 160, 20)))
            codes = [str(i) for i in range(100)]
            blocking = list(
                threads.map(lambda code: client.run(RunRequest(code=code)).stdout, codes)
            )
    assert list(itertools.chain(*loops)) == [str(i) for i in range(160)]
    assert blocking == codes


def test_a_client_survives_a_fork():
    with serving(ScriptedExecutor()) as url, SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "hello"
        code = FORKED.format(url=url)
        done = subprocess.run(
            [sys.executable, "-W", FORKS, "-c", code], capture_output=True, text=True, timeout=60
        )
    assert (done.stdout, done.stderr, done.returncode) == ("hello\nhello\nhello\n", "", 0)


FORKS = "ignore:This process:DeprecationWarning"  # Python 3.12 warns of forks beside threads
FORKED = """
import os, sys
from agent_r1.sandbox.base import RunRequest
from agent_r1.sandbox.client import SandboxClient
client = SandboxClient({url!r})
def told():
    os.write(1, client.run(RunRequest(code="hello")).stdout.encode() + b"\\n")
told()
child = os.fork()
told()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_the_endpoint_comes_from_the_environment(monkeypatch):
    with serving(ScriptedExecutor()) as url:
        monkeypatch.setenv("SANDBOX_FUSION_ENDPOINT", url + "/")
        with SandboxClient() as client:
            assert client.run(HELLO).stdout == "hello"
    monkeypatch.delenv("SANDBOX_FUSION_ENDPOINT")
    with SandboxClient() as client:
        assert [address.port for address in client.addresses] == [8080]


def test_proxy_variables_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(ScriptedExecutor()) as url, SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "hello"


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", "http://host:port"])
def test_what_is_no_url_is_refused_with_an_example(url):
    with pytest.raises(ConfigError, match="no URL"):
        SandboxClient(url)


def test_the_token_is_sent_and_its_absence_explained(monkeypatch):
    monkeypatch.delenv("AGENT_R1_SANDBOX_TOKEN", raising=False)
    with serving(ScriptedExecutor(), policy=ServicePolicy(token="s3cret")) as url:
        with SandboxClient(url, token="s3cret") as client:
            assert client.run(HELLO).stdout == "hello"
        with SandboxClient(url) as client, pytest.raises(SandboxUnavailable, match="token"):
            client.run(HELLO)
        monkeypatch.setenv("AGENT_R1_SANDBOX_TOKEN", "s3cret")
        with SandboxClient(url) as client:
            assert client.run(HELLO).stdout == "hello"


def test_a_missing_toolchain_is_a_typed_error_without_retries():
    def script(request):
        raise LanguageUnavailable("language 'go' needs the program 'go'")

    executor = ScriptedExecutor(script)
    with (
        serving(executor) as url,
        SandboxClient(url) as client,
        pytest.raises(LanguageUnavailable, match="'go'"),
    ):
        client.run(RunRequest(code="", language="go"))
    assert len(executor.requests) == 1


def test_an_invalid_request_is_a_typed_error_without_retries():
    executor = ScriptedExecutor()
    with (
        serving(executor, policy=ServicePolicy(run_seconds=5)) as url,
        SandboxClient(url) as client,
        pytest.raises(RequestError, match="at most 5"),
    ):
        client.run(HELLO)


def test_nobody_there_is_a_typed_error_within_the_patience():
    with SandboxClient("http://127.0.0.1:1", policy=IMPATIENT) as client:
        with pytest.raises(SandboxUnavailable, match=r"127\.0\.0\.1:1"):
            client.run(HELLO)
        with pytest.raises(SandboxUnavailable):
            asyncio.run(client.arun(HELLO))


def test_a_closed_client_says_so():
    client = SandboxClient("http://127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(SandboxUnavailable, match="closed"):
        client.run(HELLO)


def test_a_dead_endpoint_is_passed_over():
    with serving(ScriptedExecutor()) as url, SandboxClient(["http://127.0.0.1:1", url]) as client:
        assert [client.run(HELLO).stdout for _ in range(20)] == ["hello"] * 20


def test_an_endpoint_that_returns_is_taken_back():
    first, second = ScriptedExecutor(slots=64), ScriptedExecutor(slots=1)
    with contextlib.ExitStack() as stack:
        with serving(first) as url:
            port = int(url.rsplit(":", 1)[1])
            other = stack.enter_context(serving(second))
            client = stack.enter_context(SandboxClient([url, other]))
            for _ in range(6):
                client.run(HELLO)
            before = len(first.requests)
        assert before > 0
        for _ in range(6):
            client.run(HELLO)
        assert len(first.requests) == before
        stack.enter_context(serving(first, port=port))
        deadline = time.monotonic() + 20
        while len(first.requests) == before:
            client.run(HELLO)
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_work_goes_where_the_slots_are():
    large, small = ScriptedExecutor(slots=30), ScriptedExecutor(slots=10)
    with serving(large) as a, serving(small) as b, SandboxClient([a, b]) as client:
        client.run(HELLO)
        client.run(HELLO)  # goes to the other one; both sizes are known now
        large.hold()
        small.hold()

        async def load():
            runs = [asyncio.ensure_future(client.arun(HELLO)) for _ in range(40)]
            while large.running + small.running < 40:
                await asyncio.sleep(0.005)
            shares = large.running, small.running
            large.release.set()
            small.release.set()
            await asyncio.gather(*runs)
            return shares

        assert asyncio.run(load()) == (30, 10)


def test_a_full_endpoint_is_waited_for_then_typed():
    full = answer(429, {"detail": "the queue is full", "error": "full"}, "Retry-After: 0")
    with scripted_server(full, full, answer()) as (url, _), SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "ok"
    with (
        scripted_server(full) as (url, _),
        SandboxClient(url, policy=IMPATIENT) as client,
        pytest.raises(SandboxOverloaded, match="queue is full"),
    ):
        client.run(HELLO)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"nonsense\r\n\r\n",
        answer(500, {"detail": "a bug"}),
        answer(200, {"status": "SandboxError", "message": "fork failed"}),
        answer(200, {"status": "Success", "run_result": None}),
        answer(200, ["no result"]),
    ],
    ids=["silence", "half", "no http", "500", "SandboxError", "empty", "json"],
)
def test_a_broken_answer_is_asked_for_again_and_never_believed(broken):
    with scripted_server(broken, broken, answer()) as (url, seen), SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "ok"
        assert len(seen) == 3
    with scripted_server(broken) as (url, seen), SandboxClient(url) as client:
        with pytest.raises(SandboxError):
            client.run(HELLO)
        assert len(seen) == ClientPolicy().attempts


def test_a_kept_connection_that_the_server_closed_is_no_failure():
    with serving(ScriptedExecutor(), drain_seconds=1) as url:
        port = int(url.rsplit(":", 1)[1])
        client = SandboxClient(url, policy=ClientPolicy(attempts=1))
        assert client.run(HELLO).stdout == "hello"
    with serving(ScriptedExecutor(), port=port), client:
        assert client.run(HELLO).stdout == "hello"


def test_cancelling_a_run_ends_the_program():
    executor = ScriptedExecutor()
    executor.hold()
    with serving(executor) as url, SandboxClient(url) as client:

        async def give_up():
            await asyncio.wait_for(client.arun(HELLO), 0.2)

        with pytest.raises(TimeoutError):
            asyncio.run(give_up())
        assert executor.cancelled.wait(10)
        executor.release.set()
        assert client.run(HELLO).stdout == "hello"


def test_a_session_stays_with_its_endpoint():
    first, second = ScriptedExecutor(), ScriptedExecutor()
    with serving(first) as a, serving(second) as b, SandboxClient([a, b]) as client:
        for step in range(30):
            client.run(RunRequest(code="x", session=f"s{step % 3}"))
        homes = [{r.session for r in executor.requests} for executor in (first, second)]
        assert homes[0] & homes[1] == set()
        assert homes[0] | homes[1] == {"s0", "s1", "s2"}
        client.close_session("s1")
        client.close_session("never seen")
    assert first.closed_sessions + second.closed_sessions == ["s1"]


def test_a_session_whose_process_is_gone_is_an_error_and_not_an_empty_state():
    request = RunRequest(code="x", session="s")
    executor = ScriptedExecutor()
    with serving(executor) as url:
        port = int(url.rsplit(":", 1)[1])
        client = SandboxClient(url)
        client.run(request)
    with serving(executor, port=port), client:
        with pytest.raises(SandboxError, match="its state is lost"):
            client.run(request)
        assert len(executor.requests) == 1
        client.run(request)  # the caller was told; from here on it is a new session


def test_a_session_request_that_may_have_run_is_not_repeated():
    one = answer(200, good(instance="i"), "Connection: close")
    with scripted_server(one, None) as (url, seen), SandboxClient(url) as client:
        client.run(RunRequest(code="x", session="s"))
        with pytest.raises(SandboxUnavailable):
            client.run(RunRequest(code="x = x + 1", session="s"))
        assert len(seen) == 2
        assert json.loads(seen[1][1])["expect_instance"] == "i"


@pytest.mark.parametrize("extra", [{"session": "s"}, {"seed": 1}, {"last_expression": True}])
def test_a_plain_sandboxfusion_server_is_not_trusted_with_what_it_does_not_know(extra):
    with scripted_server(answer()) as (url, _), SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "ok"
        with pytest.raises(SandboxError, match="agent-r1 sandbox serve"):
            client.run(RunRequest(code="x", **extra))


SERVER = """
import sys
sys.path.insert(0, {folder!r})
from scripted_executor import ScriptedExecutor
from agent_r1.sandbox.serve import serve
executor = ScriptedExecutor(slots=4)
def ready(url):
    if {hold}:
        executor.hold()
    print(url, flush=True)
serve(executor, port=0, ready=ready)
"""


@contextlib.contextmanager
def server_process(hold=False):
    code = SERVER.format(folder=str(Path(__file__).parent), hold=hold)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child, child.stdout.readline().strip()
        finally:
            child.kill()


def wait_until_running(url, number=1):
    import httpx

    while httpx.get(url + "/health", trust_env=False).json()["running"] < number:
        time.sleep(0.01)


def test_a_service_killed_in_mid_run_is_replaced_by_another_endpoint():
    survivor = ScriptedExecutor(slots=1)
    with (
        server_process(hold=True) as (child, doomed),
        serving(survivor) as url,
        SandboxClient([doomed, url]) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        codes = [f"{i}" for i in range(8)]
        runs = [threads.submit(client.run, RunRequest(code=code)) for code in codes]
        wait_until_running(doomed)
        os.kill(child.pid, signal.SIGKILL)
        assert [run.result(30).stdout for run in runs] == codes


def test_a_service_killed_in_mid_run_without_another_is_a_typed_error():
    with (
        server_process(hold=True) as (child, url),
        SandboxClient(url, policy=IMPATIENT) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        run = threads.submit(client.run, HELLO)
        wait_until_running(url)
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(SandboxUnavailable):
            run.result(30)


def test_a_service_that_stands_still_is_noticed(monkeypatch):
    monkeypatch.setattr("agent_r1.sandbox.client.HEARTBEAT_SECONDS", 0.1)
    survivor = ScriptedExecutor(slots=1)
    with (
        server_process(hold=True) as (child, frozen),
        serving(survivor) as url,
        SandboxClient([frozen, url]) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        runs = [threads.submit(client.run, HELLO) for _ in range(4)]
        wait_until_running(frozen)
        os.kill(child.pid, signal.SIGSTOP)
        assert [run.result(30).stdout for run in runs] == ["hello"] * 4


def test_a_terminated_service_finishes_what_runs():
    with server_process() as (child, url), SandboxClient(url) as client:
        assert client.run(HELLO).stdout == "hello"
        child.terminate()
        assert child.wait(20) == 0


# The balancer alone: no input or output, a clock by hand.


def balancer(number=2):
    now = [100.0]
    return Balancer.of([f"e{i}" for i in range(number)]), now


def test_the_least_loaded_per_slot_is_picked():
    many, now = balancer(3)
    many.clock = lambda: now[0]
    a, b, c = many.endpoints
    a.slots, b.slots, c.slots = 4, 2, 1
    for _ in range(7):
        many.pick().in_flight += 1
    assert [a.in_flight, b.in_flight, c.in_flight] == [4, 2, 1]


def test_a_failed_endpoint_rests_longer_each_time_and_returns_on_trial():
    one, now = balancer(1)
    one.clock = lambda: now[0]
    one.random = random.Random(1)
    (endpoint,) = one.endpoints
    rests = []
    for _ in range(12):
        one.failed(endpoint)
        assert one.pick() is None
        rests.append(endpoint.rests_until - now[0])
        now[0] = endpoint.rests_until
        assert one.pick() is endpoint
    assert rests[-1] > 4 * rests[0]
    assert max(rests) <= LONGEST_REST
    endpoint.in_flight = 1  # the trial request: nobody else until it is answered
    assert one.pick() is None
    one.succeeded(endpoint, slots=4)
    assert one.pick() is endpoint


def test_many_requests_lost_at_once_are_one_failure():
    one, now = balancer(1)
    one.clock = lambda: now[0]
    for _ in range(100):
        one.failed(one.endpoints[0])
    assert one.endpoints[0].failures == 1


def test_a_busy_endpoint_stays_in_good_standing():
    two, now = balancer(2)
    two.clock = lambda: now[0]
    a, b = two.endpoints
    two.busy(a, 3)
    assert {two.pick() for _ in range(20)} == {b}
    now[0] += 3
    a.in_flight = 1
    b.in_flight = 2
    assert two.pick() is a
