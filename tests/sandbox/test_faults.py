"""What becomes of a run when parts of the executor are killed around it."""

import concurrent.futures
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_r1.errors import SandboxError, SandboxUnavailable
from agent_r1.sandbox import EmbeddedExecutor, Limits, RunRequest, RunResult, RunStatus, pool, tiers
from agent_r1.sandbox.guest import supervisor

REPOSITORY = Path(__file__).parents[2]
SUICIDE = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


def children(pid: int) -> list[int]:
    """Child processes, whichever of its threads started them."""
    lists = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(number) for text in lists for number in text.split()]


def groups() -> list[str]:
    """Control groups that executors of this process made."""
    name = f"agent-r1-{os.getpid()}-"
    return [
        f"{folder}/{child}"
        for folder, below, _ in os.walk("/sys/fs/cgroup")
        for child in below
        if child.startswith(name)
    ]


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def end(pid: int) -> None:
    """Kill a process and wait for its end."""
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([watch], [], [])
    os.close(watch)


class Watched:
    """An executor and its supervisor, found as the child that was not there before."""

    def __init__(self) -> None:
        self.before = set(children(os.getpid()))
        self.executor = EmbeddedExecutor(workers=6)

    def run(self, code: str, **request: Any) -> RunResult:
        return self.executor.run(RunRequest(code=code, **request))

    @property
    def supervisor(self) -> int:
        (found,) = set(children(os.getpid())) - self.before
        return found

    @property
    def zygote(self) -> int:
        return children(self.supervisor)[0]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    with watched.executor:
        yield watched


def test_a_slot_whose_control_group_vanished_is_replaced(watched: Watched) -> None:
    watched.run("print(1)")
    if not groups():
        pytest.skip("no control groups can be made here")
    supervisor = watched.supervisor
    end(watched.zygote)
    assert wait_until(lambda: not groups()), "the supervisor clears the groups away"
    assert wait_until(lambda: not Path(f"/proc/{supervisor}/exe").exists())
    result = watched.run("print(2)", limits=Limits(memory_bytes=300 << 20))
    assert (result.status, result.stdout) == (RunStatus.SUCCESS, "2\n")


def test_limits_that_cannot_be_set_cost_the_slot_and_not_the_run(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = pool.Slot.limit, [FileNotFoundError("memory.limit_in_bytes")]

    def limit(slot: pool.Slot, memory_bytes: int, processes: int) -> None:
        if refusals:
            raise refusals.pop()
        real(slot, memory_bytes, processes)

    monkeypatch.setattr(pool.Slot, "limit", limit)
    assert watched.run("print(1)").stdout == "1\n"
    assert not refusals


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (BrokenPipeError(32, "Broken pipe"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (ProcessLookupError(3, "No such process"), False),
        (PermissionError(1, "clone: Operation not permitted"), True),
    ],
)
def test_a_start_that_was_killed_is_tried_again_and_one_that_is_refused_is_not(
    error: OSError, refused: bool
) -> None:
    tier = pool.ZygotePool(tiers.PLAIN, pool.PoolSettings(1 << 20, "strict", None))
    host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with host, guest:
        guest.send(supervisor._failure(error))
        with pytest.raises(SandboxUnavailable) as told:
            tier._expect_ready(host)
    assert isinstance(told.value, pool.Refused) == refused


class Starts:
    """Stands in for ``subprocess.Popen`` and kills the first ``deaths`` processes at once."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.made = 0

    def __call__(self, *arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        process = REAL_POPEN(*arguments, **options)
        self.made += 1
        if self.made <= self.deaths:
            process.kill()
        return process


REAL_POPEN = subprocess.Popen


@pytest.mark.parametrize("how", ["killed", "zygote killed"])
def test_a_supervisor_killed_while_it_starts_is_started_again(
    how: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(deaths=1)
    monkeypatch.setattr(pool.subprocess, "Popen", starts)
    if how == "zygote killed":
        starts.deaths = 0
        watched.executor.start()
        end(watched.zygote)
        starts.deaths = 2  # now the second one
    assert watched.run("print(1)").stdout == "1\n"
    assert starts.made == (2 if how == "killed" else 3)


def test_one_that_is_killed_every_time_is_no_fault_of_the_kernel(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(deaths=9)
    monkeypatch.setattr(pool.subprocess, "Popen", starts)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxUnavailable, match="supervisor ended at once") as caught:
        watched.run("print(1)")
    assert starts.made == 3
    assert "kernel" not in str(caught.value) and "isolation" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    starts.deaths = 0
    assert watched.run("print(1)").stdout == "1\n", "it recovers by itself"


def test_the_dead_slots_of_a_dead_tier_are_not_tried_one_by_one(watched: Watched) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        list(threads.map(watched.run, ["import time; time.sleep(0.3)"] * 6))
    end(watched.zygote)
    assert watched.run("print(1)").stdout == "1\n"


def test_a_slot_that_does_not_start_leaves_its_tier_alone(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.run("x = 1", session="kept")
    zygote, real, failures = watched.zygote, pool._expect_hello, [OSError("killed")]

    def expect_hello(channel: Any) -> int:
        if failures:
            raise failures.pop()
        return real(channel)

    monkeypatch.setattr(pool, "_expect_hello", expect_hello)
    assert watched.run("print(2)").stdout == "2\n"
    assert watched.zygote == zygote
    assert watched.run("print(x)", session="kept").stdout == "1\n"


def test_a_session_that_has_not_begun_is_not_lost(watched: Watched) -> None:
    watched.run("print(1)")
    end(watched.zygote)
    assert watched.run("x = 1\nprint(x)", session="s").stdout == "1\n"


def test_a_session_that_died_says_so_once(watched: Watched) -> None:
    watched.run("x = 1", session="s")
    end(watched.zygote)
    with pytest.raises(SandboxError, match="session 's' is lost, and its state with it"):
        watched.run("print(x)", session="s")
    assert "NameError" in watched.run("print(x)", session="s").stderr


def test_a_program_that_died_with_its_slot_is_run_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told from one that killed itself by how it ended, so the slot is asked."""
    answers = [False, True]
    monkeypatch.setattr(pool.Slot, "is_sound", lambda slot: answers.pop(0))
    assert watched.run(SUICIDE).status is RunStatus.KILLED
    assert not answers


def test_a_slot_is_sound_until_its_zygote_ends(watched: Watched) -> None:
    watched.executor.start()
    slot = watched.executor._pools["plain"].take()
    assert slot.is_sound()
    end(watched.zygote)
    assert not slot.is_sound()
    slot.close()


def test_a_program_that_kills_itself_is_killed_and_not_repeated(watched: Watched) -> None:
    result = watched.run(SUICIDE)
    assert (result.status, result.exit_code) == (RunStatus.KILLED, -signal.SIGKILL)
    assert watched.run("print(1)").stdout == "1\n"


def test_a_killed_supervisor_leaves_no_control_group(watched: Watched) -> None:
    for _ in range(3):
        watched.run("print(1)")
        end(watched.supervisor)
    assert watched.run("print(2)").stdout == "2\n"
    watched.executor.close()
    assert groups() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the owner tells only where slots have users")
def test_no_process_beside_a_program_can_be_looked_into(watched: Watched) -> None:
    """What is not dumpable belongs to whom it was executed as, not to whom it became."""
    watched.run("print(1)")
    slots = children(watched.zygote)
    inside = [pid for slot in slots for pid in (slot, *children(slot))]
    assert len(inside) >= 3, "forker, keeper and init"
    for pid in inside:
        user = int(Path(f"/proc/{pid}/status").read_text().partition("Uid:")[2].split()[0])
        assert os.stat(f"/proc/{pid}/environ").st_uid != user


INTERRUPTED = """
    import os, signal, threading
    from agent_r1.sandbox import EmbeddedExecutor, RunRequest
    signal.signal(signal.SIGINT, lambda *_: None)
    with EmbeddedExecutor() as executor:
        executor.start()
        executor.run(RunRequest(code="x = 1", session="s"))
        code = "import time; time.sleep(1); print('whole')"
        outcome = []
        work = lambda: outcome.append(executor.run(RunRequest(code=code)).stdout)
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            os.killpg(0, signal.SIGINT)
            thread.join(0.1)
        print(outcome, executor.run(RunRequest(code="print(x)", session="s")).stdout)
"""


def test_ctrl_c_is_the_hosts_affair() -> None:
    """A terminal sends it to the whole process group; what runs is not disturbed by it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert done.stdout == "['whole\\n'] 1\n\n", done.stdout + done.stderr
