"""What only the embedded executor promises: failures of its own parts, and cleanliness."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_r1.errors import LanguageUnavailable, SandboxError, SandboxUnavailable
from agent_r1.sandbox import EmbeddedExecutor, Limits, RunRequest, RunStatus
from agent_r1.sandbox.jobs import RequestError
from agent_r1.sandbox.languages import available_languages, find_toolchain

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def executor() -> Iterator[EmbeddedExecutor]:
    with EmbeddedExecutor() as executor:
        yield executor


def descendants(root: int) -> dict[int, str]:
    """Process ids below ``root``, with their command lines."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_bytes()  # a program may have any name
                parent = int(stat.rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found: dict[int, str] = {}
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            with contextlib.suppress(OSError):
                found[child] = Path("/proc", str(child), "cmdline").read_text(errors="replace")
                queue.append(child)
    return found


def wait_until(condition: object, seconds: float = 20.0) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def groups(pid: int) -> list[str]:
    """Control groups that the executor of process ``pid`` made, wherever we are."""
    found = []
    for folder, children, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{folder}/{name}" for name in children if name.startswith(f"agent-r1-{pid}-")]
    return found


def test_any_of_its_processes_may_be_killed_between_runs() -> None:
    with EmbeddedExecutor(workers=1) as executor:
        executor.run(RunRequest(code="print(1)"))
        parts = sorted(descendants(os.getpid()))
        assert len(parts) >= 5, "supervisor, zygote, forker, keeper and init"
        for position in range(len(parts)):
            live = sorted(descendants(os.getpid()))
            os.kill(live[position % len(live)], signal.SIGKILL)
            result = executor.run(RunRequest(code="print(2)"))
            assert result.stdout == "2\n"


@pytest.mark.parametrize("position", range(5))
def test_any_of_its_processes_may_be_killed_during_a_run(position: int, tmp_path: Path) -> None:
    """The run is repeated unseen, or fails as a sandbox; it neither hangs nor lies."""
    with EmbeddedExecutor(workers=1) as executor:
        executor.run(RunRequest(code="print(1)"))
        parts = sorted(descendants(os.getpid()))
        before = len(parts)
        victim = parts[position]
        outcome: list[object] = []

        def run() -> None:
            code = "import time; time.sleep(1); print('whole')"
            try:
                outcome.append(executor.run(RunRequest(code=code)).stdout)
            except SandboxError as error:
                outcome.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert wait_until(lambda: len(descendants(os.getpid())) > before), "the run never began"
        os.kill(victim, signal.SIGKILL)
        thread.join(30)
        assert not thread.is_alive(), "the caller hangs"
        assert outcome == ["whole\n"] or isinstance(outcome[0], SandboxError), outcome


def test_a_killed_parent_leaves_nothing() -> None:
    code = """
        import sys, threading
        from agent_r1.sandbox import EmbeddedExecutor, RunRequest
        executor = EmbeddedExecutor()
        executor.run(RunRequest(code="print(1)"))
        executor.run(RunRequest(code="x = 1", session="s"))
        threading.Thread(target=executor.run, args=(RunRequest(code="while True: pass"),)).start()
        print("up", flush=True)
    """
    mounts = Path("/proc/self/mountinfo").read_text()
    command = [sys.executable, "-c", textwrap.dedent(code)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == b"up\n"
        assert wait_until(lambda: len(descendants(parent.pid)) >= 6)
        below = list(descendants(parent.pid))
        parent.kill()
    assert wait_until(lambda: not [pid for pid in below if _alive(pid)]), "processes are left"
    assert wait_until(lambda: not groups(parent.pid)), groups(parent.pid)
    assert Path("/proc/self/mountinfo").read_text() == mounts


def _alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_close_leaves_nothing() -> None:
    before, descriptors = groups(os.getpid()), len(os.listdir("/proc/self/fd"))
    already = set(descendants(os.getpid()))
    executor = EmbeddedExecutor()
    executor.run(RunRequest(code="print(1)"))
    executor.run(RunRequest(code="print(1)", session="s"))
    executor.run(RunRequest(code="echo 1", language="bash"))
    executor.close()
    executor.close()
    assert wait_until(lambda: set(descendants(os.getpid())) <= already)
    assert wait_until(lambda: groups(os.getpid()) == before)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(SandboxUnavailable, match="closed"):
        executor.run(RunRequest(code="print(1)"))


def _footprint() -> tuple[int, int, int]:
    below = descendants(os.getpid())
    mounts = len(Path("/proc/self/mountinfo").read_text().splitlines())
    return len(below), mounts, len(os.listdir("/proc/self/fd"))


def _memory() -> int:
    pages = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with contextlib.suppress(OSError):
            fields = Path("/proc", str(pid), "statm").read_text().split()
            pages += int(fields[1]) - int(fields[2])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "runs", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_many_runs_grow_nothing(runs: int) -> None:
    programs = (
        "print(1 + 1)",
        "open('a', 'w').write('x' * 10000)",
        "1 / 0",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(99)",
        "x = bytearray(10 << 20)",
    )
    with EmbeddedExecutor(workers=2) as executor:
        for code in programs * 4:
            executor.run(RunRequest(code=code))
        before, memory = _footprint(), _memory()
        for index in range(runs):
            executor.run(RunRequest(code=programs[index % len(programs)]))
        assert wait_until(lambda: _footprint() == before), (before, _footprint())
        assert _memory() < memory + (8 << 20), (memory, _memory())


def test_threads_share_one_executor(executor: EmbeddedExecutor) -> None:
    results: dict[int, str] = {}

    def work(number: int) -> None:
        results[number] = executor.run(RunRequest(code=f"print({number})")).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n" for number in range(40)}


def test_the_event_loop_runs_meanwhile(executor: EmbeddedExecutor) -> None:
    async def many() -> list[str]:
        codes = [f"import time; time.sleep(0.02); print({n})" for n in range(40)]
        results = await asyncio.gather(*(executor.arun(RunRequest(code=code)) for code in codes))
        return [result.stdout for result in results]

    assert asyncio.run(many()) == [f"{n}\n" for n in range(40)]


def test_a_cancelled_run_frees_its_place() -> None:
    async def cancelled(executor: EmbeddedExecutor) -> str:
        slow = asyncio.create_task(executor.arun(RunRequest(code="import time; time.sleep(60)")))
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(executor.arun(RunRequest(code="print('never')")))
        await asyncio.sleep(0.05)
        waiting.cancel()
        slow.cancel()
        await asyncio.gather(slow, waiting, return_exceptions=True)
        return (await executor.arun(RunRequest(code="print('next')"))).stdout

    with EmbeddedExecutor(workers=1) as executor:
        assert asyncio.run(cancelled(executor)) == "next\n"


def test_a_forked_child_gets_its_own_sandbox(executor: EmbeddedExecutor) -> None:
    """As with a data loader: the child must not speak on its parent's channels."""
    executor.run(RunRequest(code="print(1)"))
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = executor.run(RunRequest(code="print(2)")).stdout == "2\n"
            executor.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert executor.run(RunRequest(code="print(3)")).stdout == "3\n"


def test_queueing_is_not_running_time() -> None:
    limits = Limits(wall_seconds=1.5)
    request = RunRequest(code="import time; time.sleep(0.8); print('done')", limits=limits)

    async def three(executor: EmbeddedExecutor) -> list[RunStatus]:
        results = await asyncio.gather(*(executor.arun(request) for _ in range(3)))
        return [result.status for result in results]

    with EmbeddedExecutor(workers=1) as executor:
        assert asyncio.run(three(executor)) == [RunStatus.SUCCESS] * 3


def test_the_longest_unused_session_makes_room() -> None:
    with EmbeddedExecutor(max_sessions=2) as executor:
        for name in ("a", "b", "c"):
            executor.run(RunRequest(code="x = 1", session=name))
        kept = executor.run(RunRequest(code="print(x)", session="c"))
        gone = executor.run(RunRequest(code="print(x)", session="a"))
        assert (kept.status, gone.status) == (RunStatus.SUCCESS, RunStatus.ERROR)


def test_unknown_and_missing_languages_are_named(executor: EmbeddedExecutor) -> None:
    with pytest.raises(LanguageUnavailable, match=r"'brainfuck'.*known: python"):
        executor.run(RunRequest(code="+", language="brainfuck"))
    if "racket" not in available_languages():
        with pytest.raises(LanguageUnavailable, match="'racket' needs 'racket'"):
            find_toolchain("racket")


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", "a\0b"])
def test_paths_that_lead_out_are_refused(path: str, executor: EmbeddedExecutor) -> None:
    with pytest.raises(RequestError):
        executor.run(RunRequest(code="", files={path: b""}))
    with pytest.raises(RequestError):
        executor.run(RunRequest(code="", fetch_files=(path,)))


HELLO = {
    "c": '#include <stdio.h>\nint main(){int x; scanf("%d", &x); printf("%d\\n", 2 * x);}',
    "cpp": "#include <iostream>\nint main(){int x; std::cin >> x; std::cout << 2 * x << '\\n';}",
    "nodejs": "console.log(2 * Number(require('fs').readFileSync(0)))",
    "perl": "print 2 * <STDIN>, qq{\\n};",
    "rust": "use std::io;\nfn main(){let mut s = String::new(); io::stdin().read_line(&mut s)"
    '.unwrap(); println!("{}", 2 * s.trim().parse::<i32>().unwrap());}',
    "java": "import java.util.*;\nclass Main{public static void main(String[] a)"
    "{System.out.println(2 * new Scanner(System.in).nextInt());}}",
}


@pytest.mark.parametrize("language", HELLO)
def test_installed_languages_run(language: str, executor: EmbeddedExecutor) -> None:
    if language not in available_languages():
        pytest.skip(f"{language} is not installed here")
    limits = Limits(wall_seconds=20, compile_seconds=60)
    request = RunRequest(code=HELLO[language], language=language, stdin="21\n", limits=limits)
    result = executor.run(request)
    assert (result.stdout, result.status) == ("42\n", RunStatus.SUCCESS), result


def test_a_compile_error_is_an_error_of_the_program(executor: EmbeddedExecutor) -> None:
    if "c" not in available_languages():
        pytest.skip("no C compiler here")
    result = executor.run(RunRequest(code="int main({", language="c"))
    assert result.status is RunStatus.ERROR and result.compile is not None
    assert "main.c:1" in result.compile.stderr and result.stdout == ""
