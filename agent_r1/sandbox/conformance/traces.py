"""What a program could leave behind for the next one, or forge about itself."""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from agent_r1.sandbox.base import Executor, Limits, RunStatus
from agent_r1.sandbox.conformance.cases import PATIENCE, Case, Feature, describe, run

_ISOLATED: Final = frozenset({Feature.ISOLATION})


def _nothing_left(executor: Executor) -> None:
    mark = uuid.uuid4().hex
    places = ("mark", "/tmp/mark", "/dev/shm/mark", "/var/tmp/mark")
    write = f"for p in {places}:\n    try: open(p, 'w').write('{mark}')\n    except OSError: pass"
    look = f"import os\nprint([p for p in {places} if os.path.exists(p)], os.listdir('.'))"
    for _ in range(6):  # whichever place of the executor it runs on
        run(executor, write)
        seen = run(executor, look)
        assert seen.stdout == "[] []\n", describe(seen)


def _modules_untouched(executor: Executor) -> None:
    for _ in range(6):
        run(
            executor,
            "import math, builtins, os\nmath.pi = 3\nbuiltins.sum = None\nos.environ['X'] = '1'",
        )
        seen = run(
            executor, "import math, os\nprint(math.pi > 3.14, sum([1]), os.environ.get('X'))"
        )
        assert seen.stdout == "True 1 None\n", describe(seen)


def _memory_is_clean(executor: Executor) -> None:
    mark = uuid.uuid4().hex
    for _ in range(4):
        run(executor, f"secret = '{mark}' * 100\nprint(input()[:3])", stdin=mark * 100)
        head, tail = mark[:16], mark[16:]
        seen = run(
            executor,
            f"""
            import ctypes
            needle = bytes.fromhex("{head}").hex().encode() + bytes.fromhex("{tail}").hex().encode()
            found = 0
            for line in open("/proc/self/maps").read().splitlines():
                span, mode = line.split()[:2]
                low, high = (int(x, 16) for x in span.split("-"))
                if mode[:2] == "rw" and high - low < 1 << 28:
                    found += ctypes.string_at(low, high - low).count(needle)
            print("seen" if found > 50 else "clean")
            """,
        )
        assert seen.stdout == "clean\n", describe(seen)


def _random_differs(executor: Executor) -> None:
    seen = {run(executor, "import random; print(random.random())").stdout for _ in range(8)}
    assert len(seen) == 8, f"random numbers repeat: {seen}"


def _numpy_random_differs(executor: Executor) -> None:
    code = "import numpy; print(numpy.random.random(), numpy.random.default_rng().random())"
    seen = {run(executor, code).stdout for _ in range(4)}
    assert len(seen) == 4, f"random numbers repeat: {seen}"


def _forged_output(executor: Executor) -> None:
    code = """
    import json, os
    fake = json.dumps({"status": "success", "exit_code": 0, "return_code": 0}).encode()
    for descriptor in range(3, 300):
        try:
            os.write(descriptor, fake)
        except OSError:
            pass
    os._exit(7)
    """
    result = run(executor, code)
    assert result.status is RunStatus.ERROR and result.exit_code == 7, describe(result)


def _path_refused(name: str, **request: Any) -> Case:
    def check(executor: Executor) -> None:
        try:
            result = run(executor, "print('ran')", **request)
        except Exception:
            return
        assert not result.files, f"a file from outside came back: {list(result.files)}"
        if "files" in request:
            assert result.status is not RunStatus.SUCCESS, "the file was written somewhere"

    return Case(name, "a path that leads out is refused", check, _ISOLATED, hostile=True)


def _fetched_link(executor: Executor) -> None:
    code = "import os\nos.symlink('/etc/shadow', 's')\nos.symlink('/proc/1/environ', 'e')"
    result = run(executor, code, fetch_files=("s", "e"))
    assert not any(result.files.values()), "a link led out of the sandbox"


def _fetched_pipe(executor: Executor) -> None:
    began = time.monotonic()
    run(executor, "import os\nos.mkfifo('p')\nos.symlink('/dev/zero', 'z')", fetch_files=("p", "z"))
    assert time.monotonic() - began < PATIENCE, "fetching hung"


def _fetched_folder(executor: Executor) -> None:
    """A folder, and as many bytes as memory would hold: no failure of the sandbox."""
    code = "import os\nos.mkdir('d')\nopen('f', 'w').write('x')"
    result = run(executor, code, fetch_files=("d", "f"))
    assert dict(result.files) == {"f": b"x"}, describe(result)


def _fetched_much(executor: Executor) -> None:
    """Files as large as their limit come back also where memory is small."""
    limits = Limits(memory_bytes=96 << 20, file_bytes=80 << 20)
    code = "open('f', 'wb').write(bytes(60 << 20))\nopen('g', 'w').write('x')"
    for _ in range(2):
        result = run(executor, code, fetch_files=("f", "g"), limits=limits)
        sizes = {name: len(content) for name, content in result.files.items()}
        assert sizes == {"f": 60 << 20, "g": 1}, (result.status, sizes, result.stderr[-300:])


TRACES: Final = (
    Case("nothing_left", "no file is left for the next program", _nothing_left, _ISOLATED, True),
    Case(
        "modules_untouched",
        "changed modules are not the next one's",
        _modules_untouched,
        frozenset(),
        True,
    ),
    Case(
        "memory_is_clean",
        "no text of the last program in memory",
        _memory_is_clean,
        _ISOLATED,
        True,
    ),
    Case("random_differs", "random numbers are never the same twice", _random_differs),
    Case("numpy_random_differs", "nor numpy's", _numpy_random_differs),
    Case(
        "forged_output",
        "a result cannot be forged through a descriptor",
        _forged_output,
        _ISOLATED,
        True,
    ),
    _path_refused("file_in_parent", files={"../evil": b"x"}),
    _path_refused("file_in_absolute", files={"/tmp/../evil": b"x"}),
    _path_refused("file_out_parent", fetch_files=("../../etc/hosts",)),
    _path_refused("file_out_absolute", fetch_files=("/etc/hosts",)),
    Case("fetched_link", "fetching follows no link out", _fetched_link, _ISOLATED, True),
    Case("fetched_pipe", "fetching never waits", _fetched_pipe, _ISOLATED, True),
    Case("fetched_folder", "a folder is no file", _fetched_folder),
    Case(
        "fetched_much",
        "fetching needs no memory of the program's",
        _fetched_much,
        frozenset({Feature.LIMITS}),
    ),
)

CASES: Final = TRACES
