"""The HTTP door, in front of a scripted executor."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
from scripted_executor import ScriptedExecutor

from agent_r1.errors import (
    ConfigError,
    LanguageUnavailable,
    SandboxError,
    SandboxOverloaded,
    SandboxUnavailable,
)
from agent_r1.sandbox.base import RunResult, RunStatus
from agent_r1.sandbox.jobs import RequestError
from agent_r1.sandbox.serve import serve, serving
from agent_r1.sandbox.service import SandboxService, ServicePolicy

PRINT = {"code": "hello", "language": "python"}


def raising(error):
    def script(request):
        raise error

    return script


def http(url, **options):
    return httpx.Client(base_url=url, trust_env=False, timeout=20, **options)


@pytest.fixture
def executor():
    return ScriptedExecutor()


@pytest.fixture
def api(executor):
    with serving(executor) as url, http(url) as client:
        yield client


def test_run_code_answers_as_sandboxfusion_does(api):
    reply = api.post("/run_code", json=PRINT)
    assert reply.status_code == 200
    body = reply.json()
    assert body["status"] == "Success"
    assert body["message"] == ""
    assert body["compile_result"] is None
    assert body["run_result"]["status"] == "Finished"
    assert body["run_result"]["return_code"] == 0
    assert body["run_result"]["stdout"] == "hello"
    assert body["files"] == {}
    assert body["executor_pod_name"] is None


@pytest.mark.parametrize("status", list(RunStatus))
def test_whatever_a_program_does_is_http_200(status):
    executor = ScriptedExecutor(lambda request: RunResult(status=status, exit_code=None))
    with serving(executor) as url, http(url) as api:
        reply = api.post("/run_code", json=PRINT)
    assert reply.status_code == 200
    assert reply.json()["status"] == ("Success" if status is RunStatus.SUCCESS else "Failed")


def test_validation_is_422_in_the_shape_that_clients_know(api, executor):
    reply = api.post("/run_code", json={"code": 5, "language": "python"})
    assert reply.status_code == 422
    (error,) = reply.json()["detail"]
    assert error["loc"] == ["body", "code"]
    assert "str" in error["msg"]
    assert api.post("/run_code", content=b"{").status_code == 422
    assert executor.requests == []


def test_a_missing_toolchain_is_422_and_says_which():
    executor = ScriptedExecutor(raising(LanguageUnavailable("language 'go' needs 'go'")))
    with serving(executor) as url, http(url) as api:
        reply = api.post("/run_code", json={"code": "", "language": "go"})
    assert reply.status_code == 422
    assert reply.json()["error"] == "language_unavailable"
    assert "'go'" in reply.json()["detail"][0]["msg"]


def test_a_request_that_the_executor_refuses_is_422():
    executor = ScriptedExecutor(raising(RequestError("'/etc/x' is no path inside")))
    with serving(executor) as url, http(url) as api:
        reply = api.post("/run_code", json=PRINT)
    assert reply.status_code == 422
    assert "'/etc/x'" in reply.json()["detail"][0]["msg"]


def test_a_failing_sandbox_is_the_protocols_sandbox_error():
    with serving(ScriptedExecutor(raising(SandboxError("broken pipe")))) as url, http(url) as api:
        reply = api.post("/run_code", json=PRINT)
    assert reply.status_code == 200
    assert reply.json()["status"] == "SandboxError"
    assert reply.json()["message"] == "broken pipe"
    assert reply.json()["run_result"] is None


@pytest.mark.parametrize("error", [SandboxOverloaded("full"), SandboxUnavailable("no namespaces")])
def test_an_executor_that_cannot_run_now_is_503_with_advice(error):
    with serving(ScriptedExecutor(raising(error))) as url, http(url) as api:
        reply = api.post("/run_code", json=PRINT)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["detail"] == str(error)


def test_a_bug_is_500_without_its_secrets():
    with serving(ScriptedExecutor(raising(KeyError("a secret")))) as url, http(url) as api:
        reply = api.post("/run_code", json=PRINT)
        assert api.post("/run_code", content=b"{").status_code == 422  # and it lives on
    assert reply.status_code == 500
    assert "secret" not in reply.text


def test_no_more_than_the_slots_run_at_once(executor):
    executor.hold()
    with serving(executor) as url, http(url) as api:
        threads = [threading.Thread(target=api.post, args=("/run_code",), kwargs={"json": PRINT})]
        threads += [
            threading.Thread(target=api.post, args=("/run_code",), kwargs={"json": PRINT})
            for _ in range(9)
        ]
        for thread in threads:
            thread.start()
        until(lambda: api.get("/health").json()["waiting"] == 8)
        assert api.get("/health").json()["running"] == 2
        executor.release.set()
        for thread in threads:
            thread.join()
        state = api.get("/health").json()
    assert executor.most_running == 2
    assert (state["running"], state["waiting"]) == (0, 0)
    assert len(executor.requests) == 10


def test_a_full_queue_is_429_at_once(executor):
    executor.hold()
    with serving(executor, policy=ServicePolicy(queue_entries=1)) as url, http(url) as api:
        waiting = background(api, 3)
        until(lambda: api.get("/health").json()["waiting"] == 1)
        reply = api.post("/run_code", json=PRINT)
        assert reply.status_code == 429
        assert reply.json()["error"] == "full"
        assert int(reply.headers["retry-after"]) >= 1
        executor.release.set()
        assert sorted(join(waiting)) == [200, 200, 200]


def test_the_queue_is_bounded_in_bytes_too(executor):
    executor.hold()
    policy = ServicePolicy(queue_bytes=2000)
    with serving(executor, policy=policy) as url, http(url) as api:
        waiting = background(api, 3)
        until(lambda: api.get("/health").json()["waiting"] == 1)
        reply = api.post("/run_code", json={"code": "x" * 3000, "language": "python"})
        assert reply.status_code == 429
        executor.release.set()
        assert sorted(join(waiting)) == [200, 200, 200]


def test_waiting_too_long_in_the_queue_is_504(executor):
    executor.hold()
    with serving(executor, policy=ServicePolicy(queue_seconds=0.1)) as url, http(url) as api:
        waiting = background(api, 2)
        until(lambda: api.get("/health").json()["running"] == 2)
        reply = api.post("/run_code", json=PRINT)
        assert reply.status_code == 504
        assert reply.json()["error"] == "late"
        executor.release.set()
        assert sorted(join(waiting)) == [200, 200]


def test_the_time_limit_of_a_run_does_not_count_the_queue(executor):
    executor.hold()
    with serving(executor) as url, http(url) as api:
        waiting = background(api, 2)
        until(lambda: api.get("/health").json()["running"] == 2)
        late = background(api, 1, {**PRINT, "run_timeout": 0.01})
        until(lambda: api.get("/health").json()["waiting"] == 1)
        time.sleep(0.05)
        executor.release.set()
        assert join(late) == [200]
        assert join(waiting) == [200, 200]


def test_a_client_that_hangs_up_ends_its_program(executor):
    executor.hold()
    with serving(executor) as url, http(url) as api:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(PRINT).encode()
        with socket.create_connection((host, int(port))) as gone:
            head = b"POST /run_code HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            gone.sendall(head % len(body) + body)
            assert executor.started.acquire(timeout=10)
            time.sleep(0.1)
        assert executor.cancelled.wait(10)
        until(lambda: api.get("/health").json()["running"] == 0)
        assert 'refused_total{reason="client_gone"} 1' in api.get("/metrics").text


def test_a_connection_that_is_reset_before_its_answer_is_no_fault_of_the_service(executor):
    service = SandboxService(executor)
    scope = {"type": "http", "method": "GET", "path": "/v1/ping", "headers": []}

    async def answered(message):
        async def send(_):
            raise RuntimeError(message)

        await service(scope, None, send)

    asyncio.run(answered("unable to perform operation on <TCPTransport>; the handler is closed"))
    assert service.metrics.refusals == {(("reason", "client_gone"),): 1}
    with pytest.raises(RuntimeError, match="another message"):
        asyncio.run(answered("another message was expected"))


def test_a_client_that_hangs_up_in_the_queue_is_forgotten(executor):
    executor.hold()
    with serving(executor) as url, http(url) as api:
        waiting = background(api, 2)
        until(lambda: api.get("/health").json()["running"] == 2)
        with http(url) as other, pytest.raises(httpx.ReadTimeout):
            other.post("/run_code", json=PRINT, timeout=0.2)
        until(lambda: api.get("/health").json()["waiting"] == 0)
        executor.release.set()
        assert join(waiting) == [200, 200]
    assert len(executor.requests) == 2


def test_a_body_may_not_be_larger_than_allowed(executor):
    with serving(executor, policy=ServicePolicy(body_bytes=1000)) as url, http(url) as api:
        big = {"code": "x" * 2000, "language": "python"}
        assert api.post("/run_code", json=big).status_code == 413
        chunks = (b"x" * 300 for _ in range(9))  # no content-length: counted as it comes
        assert api.post("/run_code", content=chunks).status_code == 413
        assert api.post("/run_code", json=PRINT).status_code == 200
    assert len(executor.requests) == 1


@pytest.mark.parametrize(
    "field", [{"run_timeout": 11}, {"memory_limit_MB": 2}, {"limits": {"output_bytes": 11}}]
)
def test_limits_beyond_the_services_own_are_refused(executor, field):
    policy = ServicePolicy(run_seconds=10, memory_bytes=1 << 20, output_bytes=10)
    small = {"output_bytes": 1, "memory_bytes": 1000, "compile_seconds": 1}
    with serving(executor, policy=policy) as url, http(url) as api:
        body = {**PRINT, "limits": small}
        assert api.post("/run_code", json=body).status_code == 200
        if "limits" not in field:
            small = {k: v for k, v in small.items() if k != "memory_bytes"}
        limits = {**small, **field.get("limits", {})}
        reply = api.post("/run_code", json={**PRINT, **field, "limits": limits})
    assert reply.status_code == 422
    assert "at most" in reply.json()["detail"][0]["msg"]


def test_a_token_guards_everything_but_the_signs_of_life(executor):
    with serving(executor, policy=ServicePolicy(token="s3cret")) as url:
        with http(url) as stranger:
            assert stranger.post("/run_code", json=PRINT).status_code == 401
            assert stranger.get("/metrics").status_code == 401
            assert stranger.get("/v1/ping").json() == "pong"
            assert stranger.get("/health").status_code == 200
        with http(url, headers={"Authorization": "Bearer wrong"}) as wrong:
            assert wrong.post("/run_code", json=PRINT).status_code == 401
        with http(url, headers={"Authorization": "Bearer s3cret"}) as friend:
            assert friend.post("/run_code", json=PRINT).status_code == 200
    assert len(executor.requests) == 1


def test_unknown_paths_and_methods_are_clear(api):
    assert api.get("/nowhere").status_code == 404
    assert api.get("/run_code").status_code == 405
    assert "does not take GET" in api.get("/run_code").json()["detail"]


def test_metrics_count_programs_by_outcome(executor):
    executor.script = lambda request: RunResult(
        status=RunStatus(request.code), exit_code=1, seconds=0.02
    )
    with serving(executor) as url, http(url) as api:
        for status in ("timeout", "timeout", "error"):
            api.post("/run_code", json={"code": status, "language": "python"})
        api.get("/nowhere/{evil}")
        text = api.get("/metrics").text
    assert 'agent_r1_sandbox_runs_total{language="python",outcome="timeout"} 2' in text
    assert 'agent_r1_sandbox_runs_total{language="python",outcome="error"} 1' in text
    assert 'agent_r1_sandbox_run_seconds_bucket{le="0.01"} 0' in text
    assert 'agent_r1_sandbox_run_seconds_bucket{le="0.025"} 3' in text
    assert "agent_r1_sandbox_run_seconds_count 3" in text
    assert "evil" not in text
    assert 'requests_total{path="other",code="404"} 1' in text


def test_a_session_is_closed_by_name(api, executor):
    assert api.post("/close_session", json={"session": "t1"}).status_code == 200
    assert executor.closed_sessions == ["t1"]
    assert api.post("/close_session", json={}).status_code == 422


def test_a_session_of_another_process_is_lost(api, executor):
    known = api.get("/health").json()["instance"]
    ask = {**PRINT, "session": "t", "expect_instance": known}
    assert api.post("/run_code", json=ask).status_code == 200
    reply = api.post("/run_code", json={**ask, "expect_instance": "another"})
    assert reply.status_code == 409
    assert reply.json()["error"] == "session_lost"
    assert len(executor.requests) == 1


def test_shutdown_finishes_what_runs_and_sends_away_what_waits(executor):
    executor.hold()
    closing = threading.Timer(0.3, executor.release.set)
    with contextlib.ExitStack() as later:
        with serving(executor) as url:
            api = later.enter_context(http(url))
            running = background(api, 2)
            until(lambda: api.get("/health").json()["running"] == 2)
            queued = background(api, 1)
            until(lambda: api.get("/health").json()["waiting"] == 1)
            closing.start()
        assert join(running) == [200, 200]
        assert join(queued) == [503]
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/v1/ping", trust_env=False)


def test_draining_refuses_new_requests(executor):
    service = SandboxService(executor)
    service.drain()

    async def ask():
        sent = []

        async def receive():
            return {"type": "http.request", "body": json.dumps(PRINT).encode()}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/run_code", "headers": []}
        await service(scope, receive, send)
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": []}
        await service(scope, receive, send)
        return [message["status"] for message in sent if "status" in message]

    assert asyncio.run(ask()) == [503, 503]
    assert executor.requests == []


def test_an_open_address_needs_a_token_or_a_word(executor):
    with pytest.raises(ConfigError, match="token"):
        serve(executor, host="0.0.0.0", port=0)


def test_a_sandbox_that_cannot_run_says_so_at_the_start():
    executor = ScriptedExecutor(raising(SandboxUnavailable("no user namespaces")))
    with pytest.raises(SandboxUnavailable, match="no user namespaces"):
        serve(executor, port=0)


def test_a_taken_port_says_so(executor):
    with serving(executor) as url, pytest.raises(ConfigError, match="choose another port"):
        serve(executor, port=int(url.rsplit(":", 1)[1]))


@pytest.mark.parametrize(
    "wrong", [{"slots": 0}, {"queue_seconds": 0}, {"body_bytes": -1}, {"token": ""}]
)
def test_an_impossible_policy_is_refused(wrong):
    with pytest.raises(ConfigError):
        ServicePolicy(**wrong)


def background(api, number, body=PRINT):
    replies = []

    def post():
        replies.append(api.post("/run_code", json=body).status_code)

    threads = [threading.Thread(target=post) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads, replies


def join(work):
    threads, replies = work
    for thread in threads:
        thread.join(20)
    return replies


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the expected state never came"
        time.sleep(0.005)
