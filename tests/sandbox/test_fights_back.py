"""Programs that fight back: each once got something out of the sandbox, and must not again."""

import contextlib
import marshal
import os
import signal
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_executor import ScriptedExecutor

from agent_r1.errors import SandboxError
from agent_r1.sandbox import exchange, jupyter, wire
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus
from agent_r1.sandbox.embedded import EmbeddedExecutor
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.service import SandboxService


@pytest.fixture(scope="module")
def executor():
    with EmbeddedExecutor(workers=1) as made:
        yield made


def run(executor, code, **options):
    limits = Limits(**options.pop("limits", {}))
    return executor.run(RunRequest(code=code, limits=limits, **options))


# --- what the host reads of a program -------------------------------------------------------


def packed(files, limit=1 << 20):
    """As the collector writes them."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(tempfile.TemporaryFile())
        sources = [stack.enter_context(tempfile.TemporaryFile()) for _ in files]
        for source, content in zip(sources, files.values(), strict=True):
            os.pwrite(source.fileno(), content, 0)
        opened = [(name, source.fileno()) for name, source in zip(files, sources, strict=True)]
        messages.write_files(target.fileno(), opened, limit)
        return os.pread(target.fileno(), 1 << 20, 0)


def test_files_share_one_limit():
    whole = packed({b"a": b"xyz", b"b": b"uvw", b"c": b"."}, limit=5)
    assert messages.unpack_files(whole, 3) == {b"a": b"xyz", b"b": b"uv", b"c": b""}


@given(st.dictionaries(st.binary(min_size=1, max_size=9), st.binary(max_size=40), max_size=5))
def test_files_survive_packing(files):
    assert messages.unpack_files(packed(files), 5) == files


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_at_all_make_the_reader_of_files_fail(data, cut):
    whole = packed({b"a": data})
    for attempt in (data, whole[:cut], whole[:cut] + data, whole + b"x"):
        found = messages.unpack_files(attempt, 3)
        assert found is None or attempt == whole


def test_what_once_crashed_the_host_is_no_list_of_files():
    forged = marshal.dumps({"a": b"FORGED", "/etc/shadow": b"x"})
    crash = b"{" + b"\xa8\x01\0\0\0r\0\0\0\0" + b"N" + b"0"
    assert messages.unpack_files(forged, 9) is None
    assert messages.unpack_files(crash, 9) is None


def test_fetched_files_share_the_limit_and_odd_names_cost_only_themselves(executor):
    code = "open('a', 'w').write('x' * 600000)\nopen('b', 'w').write('y' * 600000)"
    found = run(
        executor,
        code,
        limits={"file_bytes": 1 << 21},
        fetch_files=("a", "b", "absent", "\ud800"),
    )
    assert {name: len(content) for name, content in found.files.items()} == {
        "a": 600000,
        "b": 600000,
    }


# --- how runs end ----------------------------------------------------------------------------


def test_a_program_that_spins_has_run_out_of_time(executor):
    spins = run(executor, "while True: pass", limits={"cpu_seconds": 1, "wall_seconds": 8})
    assert spins.status is RunStatus.TIMEOUT


# --- right programs, and requests that are none ---------------------------------------------


def test_the_standard_streams_can_be_opened_by_name(executor):
    code = "open('/dev/stdout', 'w').write('out')\nopen('/dev/stderr', 'w').write('err')"
    result = run(executor, code)
    assert (result.status, result.stdout, result.stderr) == (RunStatus.SUCCESS, "out", "err")


def test_requests_that_cannot_be_sent_leave_no_descriptor_behind(executor):
    run(executor, "pass")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(Exception):  # noqa: B017  (whatever it is, it must leak nothing)
            run(executor, "pass", limits={"file_bytes": 1 << 70})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    read = run(executor, "import sys; print(len(sys.stdin.buffer.read()))", stdin="\ud800")
    assert read.stdout == "3\n"


@pytest.mark.parametrize(
    ("name", "value"), [("processes", 1 << 63), ("file_bytes", 1 << 70), ("cpu_seconds", 1e300)]
)
def test_the_service_bounds_every_number_of_a_request(name, value):
    service = SandboxService(ScriptedExecutor())
    with pytest.raises(wire.InvalidRequest, match=name):
        service._check(RunRequest(code="pass", limits=Limits(**{name: value})))
    service._check(RunRequest(code="pass"))


@pytest.mark.parametrize("body", [b'{"code": "\xff"}', b"[" * 200_000, b'{"code": ' + b"[" * 9999])
def test_bodies_that_are_no_json_are_the_clients_fault(body):
    with pytest.raises(wire.InvalidRequest):
        wire.decode_request(body)


# --- notebooks ------------------------------------------------------------------------------


def record(data, count):
    result = RunResult(
        status=RunStatus.SUCCESS,
        stdout="",
        stderr="",
        exit_code=0,
        files={jupyter.RECORD_FILE: data},
    )
    return jupyter.from_result(result, count)


def test_a_record_of_fewer_cells_is_no_success():
    assert record(b"[]", 0).status == "Success"
    assert record(b"[]", 3).status == "Failed"


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"[" + b" " * (9 << 20) + b"]", b"{}"])
def test_a_record_of_any_size_and_depth_is_refused_quietly(data):
    answer = record(data, 1)
    assert (answer.status, answer.cells) == ("Failed", [])


def test_the_error_of_a_failed_collection_is_one(monkeypatch, executor):
    monkeypatch.setattr(messages, "unpack_files", lambda data, limit: None)
    with pytest.raises(SandboxError, match="could not be collected"):
        run(executor, "open('a', 'w')", fetch_files=("a",))


def test_what_the_kernel_ends_for_its_cpu_time_is_a_timeout_whatever_the_accounts_say_exactly():
    """Limits are counted in ticks, reports exactly: 0.84 s of 1 s were seen."""
    for number, seconds, status in (
        (signal.SIGXCPU, 0.84, RunStatus.TIMEOUT),
        (signal.SIGKILL, 1.6, RunStatus.TIMEOUT),
        (signal.SIGXCPU, 0.01, RunStatus.KILLED),
        (signal.SIGKILL, 0.01, RunStatus.KILLED),
    ):
        report = messages.Report(messages.EXITED, False, int(number), 2.0, seconds)
        assert exchange.judge(report, False, False, 1.0)[0] is status
