"""What right programs do that a sandbox easily forbids, and requests that are none."""

from __future__ import annotations

from typing import Any, Final

from agent_r1.errors import SandboxError
from agent_r1.sandbox.base import Executor, Limits, RunStatus
from agent_r1.sandbox.conformance.cases import Case, Feature, describe, prints, run

_SESSIONS: Final = frozenset({Feature.SESSIONS})
_STATUSES: Final = frozenset({Feature.STATUSES})
_LIMITS: Final = frozenset({Feature.LIMITS})


def _streams(name: str, language: str, code: str) -> Case:
    def check(executor: Executor) -> None:
        result = run(executor, code, language=language)
        assert result.status is RunStatus.SUCCESS, describe(result)
        assert (result.stdout, result.stderr) == ("out\n", "err\n"), describe(result)

    return Case(name, "the standard streams can be opened by name", check)


PROGRAMS: Final = (
    _streams(
        "streams_by_name",
        "python",
        "print('out', file=open('/dev/stdout', 'w'))\nprint('err', file=open('/dev/stderr', 'w'))",
    ),
    _streams(
        "streams_by_name_in_a_shell", "bash", "echo out > /dev/stdout; echo err > /dev/stderr"
    ),
    prints(
        "temporary_folder",
        "`/tmp` can be written to",
        "open('/tmp/x', 'w').write('there')\nprint(open('/tmp/x').read())",
        "there\n",
    ),
    prints(
        "limits_of_its_own",
        "a program may name itself by its number",
        """
        import os, resource
        me = os.getpid()
        soft, hard = resource.prlimit(me, resource.RLIMIT_NOFILE)
        resource.prlimit(me, resource.RLIMIT_NOFILE, (64, hard))
        os.sched_setaffinity(me, os.sched_getaffinity(me))
        os.setpriority(os.PRIO_PROCESS, me, 19)
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0))
        """,
        "64 19\n",
    ),
    prints(
        "limits_of_a_child",
        "and what it started",
        """
        import os, resource, signal
        child = os.fork()
        if child == 0:
            signal.pause()
        resource.prlimit(child, resource.RLIMIT_NOFILE, (32, 32))
        print(resource.prlimit(child, resource.RLIMIT_NOFILE))
        os.kill(child, 9)
        """,
        "(32, 32)\n",
    ),
    prints("sync", "`sync` is done", "import os\nos.sync()\nprint('done')", "done\n"),
)


def _is_the_requests_fault(name: str, claim: str, **request: Any) -> Case:
    """Refused as a request: no failure of the sandbox, after which it would be asked again."""

    def check(executor: Executor) -> None:
        try:
            result = run(executor, request.get("code", "print('ran')"), **_rest(request))
        except SandboxError as error:
            raise AssertionError(f"taken for a failure of the sandbox: {error}") from error
        except ValueError:
            return
        raise AssertionError(f"the request was run: {describe(result)}")

    return Case(name, claim, check, _LIMITS)


def _rest(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "code"}


_MANY: Final = {f"f{number}": b"x" for number in range(2000)}

REQUESTS: Final = (
    _is_the_requests_fault("long_name", "a name too long", files={"a" * 300: b""}),
    _is_the_requests_fault("long_path", "a path too long", files={"a/" * 3000 + "b": b""}),
    _is_the_requests_fault(
        "file_and_folder", "a file that is a folder, too", files={"a": b"", "a/b": b""}
    ),
    _is_the_requests_fault(
        "whole_pages", "files take whole pages", files=_MANY, limits=Limits(file_bytes=4 << 20)
    ),
    _is_the_requests_fault(
        "too_many_files", "and each an entry", files={f"f{n}": b"" for n in range(20_000)}
    ),
    _is_the_requests_fault(
        "large_source",
        "a source is a file, too",
        code="#" * 9000,
        language="bash",
        limits=Limits(file_bytes=8192),
    ),
    _is_the_requests_fault(
        "too_many_processes", "more than there can be", limits=Limits(processes=1 << 40)
    ),
    _is_the_requests_fault(
        "too_large_files", "more than the kernel knows", limits=Limits(file_bytes=1 << 62)
    ),
    _is_the_requests_fault(
        "too_much_time", "longer than a clock runs", limits=Limits(cpu_seconds=1e300)
    ),
)


def _many_files(executor: Executor) -> None:
    """Just what fits is placed."""
    files = {f"d/f{number}": b"x" for number in range(1000)}
    code = "import os\nprint(len(os.listdir('d')))"
    result = run(executor, code, files=files, limits=Limits(file_bytes=4 << 20))
    assert result.stdout == "1000\n", describe(result)


def _in_the_way(executor: Executor) -> None:
    """A file that cannot be placed costs one run, and not the session's state."""
    try:
        run(executor, "import os\nos.mkdir('a')\nx = 5", session="way")
        blocked = run(executor, "print(x)", session="way", files={"a": b"1"})
        assert blocked.status is RunStatus.ERROR and "placed" in blocked.stderr, describe(blocked)
        after = run(executor, "print(x)", session="way")
        assert after.stdout == "5\n", describe(after)
    finally:
        executor.close_session("way")


def _words(executor: Executor) -> None:
    """Only an uncaught MemoryError counts, however the program's own words look."""
    for code in (
        "import sys\nsys.stderr.write('MemoryError\\n')\nsys.exit(1)",
        "class OwnMemoryError(Exception): pass\nraise OwnMemoryError",
        "try:\n    bytearray(1 << 60)\nexcept MemoryError:\n    raise SystemExit('MemoryError')",
    ):
        result = run(executor, code)
        assert (result.status, result.exit_code) == (RunStatus.ERROR, 1), describe(result)
    result = run(executor, "bytearray(1 << 60)")
    assert (result.status, result.exit_code) == (RunStatus.MEMORY_LIMIT, 1), describe(result)


ENDS: Final = (
    Case("just_enough_files", "as many files as allowed", _many_files, _LIMITS),
    Case("file_in_the_way", "a session outlives a file in its way", _in_the_way, _SESSIONS),
    Case("words_about_memory", "running out of memory is no matter of words", _words, _STATUSES),
)

CASES: Final = (*PROGRAMS, *REQUESTS, *ENDS)
