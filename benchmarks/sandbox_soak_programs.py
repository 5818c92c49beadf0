"""The programs of the soak, each with what must come of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus

Check = Callable[[RunResult], str | None]
ENDED = (RunStatus.ERROR, RunStatus.KILLED, RunStatus.TIMEOUT)


@dataclass(frozen=True)
class Program:
    """``check`` gives what is wrong with a result, or ``None``."""

    kind: str
    request: RunRequest
    check: Check


def draw(chance: random.Random, mark: str) -> Program:
    """One of the mix: mostly ordinary, a good part failing, some hostile."""
    makers, weights = zip(*MIX, strict=True)
    program: Program = chance.choices(makers, weights)[0](chance, mark)
    return program


def printing(kind: str, code: str, expected: str, **request: object) -> Program:
    def check(result: RunResult) -> str | None:
        good = result.status is RunStatus.SUCCESS and result.stdout == expected
        return None if good else f"expected {expected!r}"

    return Program(kind, RunRequest(code=code, **request), check)  # type: ignore[arg-type]


def ending(kind: str, code: str, *statuses: RunStatus, text: str = "", **limits: float) -> Program:
    """A program that ends in one of ``statuses``, with ``text`` in one of its streams."""

    def check(result: RunResult) -> str | None:
        if result.status not in statuses:
            return f"expected {' or '.join(statuses)}"
        return None if text in result.stdout + result.stderr else f"no {text!r}"

    request = RunRequest(code=code, limits=Limits(**limits))  # type: ignore[arg-type]
    return Program(kind, request, check)


def arithmetic(chance: random.Random, mark: str) -> Program:
    a, b = chance.randrange(10**9), chance.randrange(10**9)
    return printing("arithmetic", f"print({a} * {b}, '{mark}')", f"{a * b} {mark}\n")


def numpy(chance: random.Random, mark: str) -> Program:
    a = chance.randrange(1, 1000)
    code = f"import numpy as np\nprint(int(np.arange({a}).sum()), '{mark}')"
    return printing("numpy", code, f"{a * (a - 1) // 2} {mark}\n")


def sympy(chance: random.Random, mark: str) -> Program:
    a, b = sorted(chance.sample(range(1, 100), 2))
    code = f"from sympy import *\nx = symbols('x')\nprint(solve((x-{a})*(x-{b}), x), '{mark}')"
    return printing("sympy", code, f"[{a}, {b}] {mark}\n")


def stdin(chance: random.Random, mark: str) -> Program:
    return printing("stdin", "print(input()[::-1])", f"{mark[::-1]}\n", stdin=mark)


def files(chance: random.Random, mark: str) -> Program:
    content = chance.randbytes(chance.randrange(1, 100_000))
    code = "open('out', 'wb').write(open('in', 'rb').read()[::-1])"

    def check(result: RunResult) -> str | None:
        return None if result.files == {"out": content[::-1]} else "other file contents"

    request = RunRequest(code=code, files={"in": content}, fetch_files=("out",))
    return Program("files", request, check)


def bash(chance: random.Random, mark: str) -> Program:
    code = f"for i in 1 2 3; do echo -n $i; done; echo {mark}"
    return printing("bash", code, f"123{mark}\n", language="bash")


def seeded(chance: random.Random, mark: str) -> Program:
    seed = chance.randrange(1 << 32)
    value = random.Random(7).random()
    code = f"import random\nr = random.Random(7).random()\nrandom.random()\nprint(r, {seed})"
    return printing("seeded", code, f"{value} {seed}\n", seed=seed)


def fresh_random(chance: random.Random, mark: str) -> Program:
    def check(result: RunResult) -> str | None:
        return None if result.status is RunStatus.SUCCESS else "no success"

    code = "import random, os\nprint(random.random(), random.getrandbits(64))"
    return Program("fresh random", RunRequest(code=code), check)


def raising(chance: random.Random, mark: str) -> Program:
    return ending(
        "error", f"raise ValueError('{mark}')", RunStatus.ERROR, text=f"ValueError: {mark}"
    )


def looping(chance: random.Random, mark: str) -> Program:
    code = f"print('{mark}', flush=True)\nwhile True: pass"
    return ending("timeout", code, RunStatus.TIMEOUT, text=mark, wall_seconds=1.5)


def memory(chance: random.Random, mark: str) -> Program:
    code = "x = []\nwhile True: x.append(bytearray(1 << 24))"
    return ending("memory", code, RunStatus.MEMORY_LIMIT, RunStatus.ERROR, memory_bytes=200 << 20)


def family(chance: random.Random, mark: str) -> Program:
    """Children run out of memory, their parent does not: no later program may pay for that."""
    code = (
        "import os, time\npids = []\nfor _ in range(6):\n  pid = os.fork()\n  if pid == 0:\n"
        "    held = bytearray(96 << 20); time.sleep(0.3); os._exit(0)\n  pids.append(pid)\n"
        f"for pid in pids: os.waitpid(pid, 0)\nprint('{mark}')"
    )

    def check(result: RunResult) -> str | None:
        good = result.status is RunStatus.SUCCESS and result.stdout == f"{mark}\n"
        early = result.status is RunStatus.MEMORY_LIMIT  # seen before the kernel had to kill
        return None if good or early else f"expected {mark!r}"

    request = RunRequest(code=code, limits=Limits(memory_bytes=256 << 20))
    return Program("children out of memory", request, check)


def flood(chance: random.Random, mark: str) -> Program:
    code = f"print('{mark}')\nwhile True: print('x' * 10000)"
    return ending("output", code, RunStatus.OUTPUT_LIMIT, text=mark, wall_seconds=60.0)


def fork_bomb(chance: random.Random, mark: str) -> Program:
    code = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"
    return ending("fork bomb", code, *ENDED, wall_seconds=1.0)


def daemon(chance: random.Random, mark: str) -> Program:
    code = (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    os.close(1); os.close(2); time.sleep(1000)\n  os._exit(0)\n"
        f"os.wait(); print('{mark}')"
    )
    return printing("daemon", code, f"{mark}\n")


def killer(chance: random.Random, mark: str) -> Program:
    code = "import os, signal\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\nos.kill(os.getpid(), 9)"
    return ending("kill everything", code, *ENDED)


def exits(chance: random.Random, mark: str) -> Program:
    number = chance.randrange(1, 256)

    def check(result: RunResult) -> str | None:
        return None if result.exit_code == number else f"expected exit code {number}"

    return Program("exit code", RunRequest(code=f"import os; os._exit({number})"), check)


MIX = [
    (arithmetic, 40),
    (numpy, 10),
    (sympy, 5),
    (stdin, 5),
    (files, 5),
    (bash, 4),
    (seeded, 3),
    (fresh_random, 5),
    (raising, 8),
    (looping, 2),
    (memory, 2),
    (family, 3),
    (flood, 2),
    (fork_bomb, 1),
    (daemon, 3),
    (killer, 2),
    (exits, 3),
]
