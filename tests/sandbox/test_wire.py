import json

import pytest
import sandbox_fusion
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.errors import SandboxError
from agent_r1.sandbox import wire
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PATHS = st.text("abc_/.", min_size=1, max_size=12).filter(lambda p: ".." not in p.split("/"))
POSITIVE = st.floats(0.001, 3600)
LIMITS = st.builds(
    Limits,
    wall_seconds=POSITIVE,
    cpu_seconds=st.none() | POSITIVE,
    memory_bytes=st.integers(1, 1 << 45),
    output_bytes=st.integers(1, 1 << 30),
    processes=st.integers(1, 4096),
    file_bytes=st.integers(1, 1 << 40),
    compile_seconds=POSITIVE,
)
REQUESTS = st.builds(
    RunRequest,
    code=TEXT,
    language=st.sampled_from(["python", "bash", "cpp"]),
    stdin=TEXT,
    files=st.dictionaries(PATHS, st.binary(max_size=30), max_size=3),
    fetch_files=st.lists(PATHS, max_size=3).map(tuple),
    limits=LIMITS,
    seed=st.none() | st.integers(0, (1 << 63) - 1),
    session=st.none() | TEXT,
    last_expression=st.booleans(),
)


def command():
    return st.builds(
        RunResult,
        status=st.sampled_from(RunStatus),
        stdout=TEXT,
        stderr=TEXT,
        exit_code=st.none() | st.integers(-64, 255),
        seconds=st.floats(0, 1e6),
        files=st.dictionaries(PATHS, st.binary(max_size=30), max_size=2),
        compile=st.none() | compiler(),
    )


def compiler():
    return st.builds(
        RunResult,
        status=st.sampled_from(RunStatus),
        stdout=TEXT,
        stderr=TEXT,
        exit_code=st.none() | st.integers(-64, 255),
        seconds=st.floats(0, 1e6),
    )


@given(REQUESTS)
@settings(max_examples=150)
def test_a_request_survives_the_wire_exactly(request):
    data = wire.encode(wire.from_request(request))
    assert wire.to_request(wire.decode_request(data)) == request


@given(command())
@settings(max_examples=300)
def test_a_result_survives_the_wire_exactly(result):
    restored, body = wire.to_result(wire.encode(wire.from_result(result, "here")))
    assert restored == result
    assert body.instance == "here"


@given(command())
@settings(max_examples=200)
def test_foreign_clients_can_read_every_result_and_never_see_a_sandbox_error(result):
    data = json.loads(wire.encode(wire.from_result(result)))
    read = sandbox_fusion.RunCodeResponse(**data)
    mapping = sandbox_fusion.SummaryMapping(
        Success="ok", Failed="failed", RunTimeout="late", CompileTimeout="late"
    )
    summary = sandbox_fusion.summary_run_code_result(read, mapping)
    compiled = result.compile is None or result.compile.status is RunStatus.SUCCESS
    good = compiled and result.status is RunStatus.SUCCESS
    assert read.status.value == ("Success" if good else "Failed")
    assert (summary == "ok") is good
    decisive = result if compiled else result.compile
    assert (summary == "late") is (decisive.status is RunStatus.TIMEOUT)


def test_the_protocols_own_fields_and_defaults_are_understood():
    request = wire.to_request(wire.decode_request(b'{"code": "print(1)", "language": "python"}'))
    assert request == RunRequest(code="print(1)", limits=Limits(compile_seconds=10.0))
    body = b"""{"code": "x", "language": "cpp", "compile_timeout": 3, "run_timeout": "2.5",
        "memory_limit_MB": 256, "stdin": "in", "files": {"a/b": "aGk=", "skipped": null},
        "fetch_files": ["a/b"], "some_future_field": 1}"""
    assert wire.to_request(wire.decode_request(body)) == RunRequest(
        code="x",
        language="cpp",
        stdin="in",
        files={"a/b": b"hi"},
        fetch_files=("a/b",),
        limits=Limits(wall_seconds=2.5, compile_seconds=3, memory_bytes=256 << 20),
    )


def test_a_sandboxfusion_server_would_understand_our_request():
    request = RunRequest(code="x", stdin="in", limits=Limits(wall_seconds=3, memory_bytes=5 << 20))
    body = json.loads(wire.encode(wire.from_request(request)))
    assert body["code"] == "x"
    assert body["language"] == "python"
    assert body["stdin"] == "in"
    assert body["run_timeout"] == 3
    assert body["memory_limit_MB"] == 5


@pytest.mark.parametrize(
    ("body", "location", "words"),
    [
        (b'{"language": "python"}', (), "code"),
        (b'{"code": 1, "language": "python"}', ("code",), "str"),
        (b'{"code": "", "language": "python", "files": {"a": 1}}', ("files",), "str"),
        (b'{"code": "", "language": "python", "files": {"a": "!"}}', ("files",), "base64"),
        (b'{"code": "", "language": "python", "files": {"../a": ""}}', ("files",), "relative"),
        (b'{"code": "", "language": "python", "fetch_files": [""]}', ("fetch_files",), "relative"),
        (b'{"code": "", "language": "python", "fetch_files": ["a/../b"]}', ("fetch_files",), ".."),
        (b'{"code": "", "language": "python", "run_timeout": 0}', ("limits", "wall_seconds"), "0"),
        (
            b'{"code": "", "language": "python", "run_timeout": -1}',
            ("limits", "wall_seconds"),
            "-1",
        ),
        (
            b'{"code": "", "language": "python", "limits": {"processes": 0}}',
            ("limits", "processes"),
            "0",
        ),
        (b"[1]", (), "object"),
        (b"{", (), "JSON"),
        (b"\xff", (), "JSON"),
    ],
)
def test_an_invalid_body_names_the_field(body, location, words):
    with pytest.raises(wire.InvalidRequest) as caught:
        wire.to_request(wire.decode_request(body))
    assert caught.value.location == location
    assert words in str(caught.value)


def test_a_limit_reads_as_a_failed_run_with_a_message_for_foreign_clients():
    result = RunResult(status=RunStatus.MEMORY_LIMIT, stdout="part", exit_code=None, seconds=1.0)
    body = json.loads(wire.encode(wire.from_result(result)))
    assert body["status"] == "Failed"
    assert "memory limit" in body["message"]
    assert body["run_result"]["status"] == "Finished"
    assert body["run_result"]["return_code"] == wire.KILLED_BY_LIMIT
    assert body["run_result"]["stdout"] == "part"


def test_a_compile_failure_has_no_run_result():
    failed = RunResult(status=RunStatus.ERROR, stderr="no ;", exit_code=1)
    result = RunResult(status=RunStatus.ERROR, stderr="no ;", exit_code=1, compile=failed)
    body = json.loads(wire.encode(wire.from_result(result)))
    assert body["status"] == "Failed"
    assert body["run_result"] is None
    assert body["compile_result"]["return_code"] == 1
    assert body["compile_result"]["stderr"] == "no ;"


@pytest.mark.parametrize(
    ("command_result", "status"),
    [
        ({"status": "Finished", "return_code": 0}, RunStatus.SUCCESS),
        ({"status": "Finished", "return_code": 1}, RunStatus.ERROR),
        ({"status": "Finished", "return_code": -9}, RunStatus.KILLED),
        ({"status": "TimeLimitExceeded", "return_code": None}, RunStatus.TIMEOUT),
    ],
)
def test_answers_of_a_foreign_server_get_the_nearest_status(command_result, status):
    run = {**command_result, "stdout": "o", "stderr": None, "execution_time": 0.5}
    body = {"status": "Failed", "message": "", "run_result": run, "files": {"f": "aGk="}}
    result, _ = wire.to_result(json.dumps(body).encode())
    assert result == RunResult(
        status=status,
        stdout="o",
        exit_code=command_result["return_code"],
        seconds=0.5,
        files={"f": b"hi"},
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"status": "Success"}',
        b'{"status": "SandboxError", "message": "fork failed"}',
        b'{"status": "Success", "run_result": {"status": "Error", "stderr": "x"}}',
        b'{"status": "Failed", "run_result": {"status": "Finished", "outcome": "melted"}}',
    ],
)
def test_what_is_no_result_is_a_sandbox_error(body):
    with pytest.raises(SandboxError):
        wire.to_result(body)


def test_lone_surrogates_do_not_break_the_encoder():
    result = RunResult(status=RunStatus.SUCCESS, stdout="a\ud800b", exit_code=0)
    restored, _ = wire.to_result(wire.encode(wire.from_result(result)))
    assert restored.stdout == "a?b"
