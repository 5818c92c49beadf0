"""The Python tool on the embedded sandbox: what a model really reads."""

import asyncio

import pytest

from agent_r1.errors import SandboxUnavailable
from agent_r1.sandbox.base import Limits, RunRequest
from agent_r1.sandbox.embedded import EmbeddedExecutor
from agent_r1.tool.base import CallContext, call_context
from agent_r1.tool.envs.retool import ReToolEnv
from agent_r1.tool.tools.python import PythonTool
from agent_r1.types import Task


@pytest.fixture(scope="module")
def executor():
    with EmbeddedExecutor() as executor:
        try:
            executor.run(RunRequest(code="1"))
        except SandboxUnavailable as reason:
            pytest.skip(f"no sandbox on this machine: {reason}")
        yield executor


def shown(executor, code, **options):
    env = ReToolEnv([PythonTool(executor, **options)], 400)
    observation, (success,), active = env.step(f"<code>\n```python\n{code}\n```\n</code>")
    assert active
    text = observation.removeprefix("\n<interpreter>\n").removesuffix("\n</interpreter>\n")
    return text, success


@pytest.mark.parametrize(
    ("code", "success", "ends_with"),
    [
        ("print(2 + 2)", True, "4"),
        ("print('é', end='')", True, "é"),
        ("1 / 0", False, "ZeroDivisionError: division by zero"),
        ("def f(:", False, "SyntaxError: invalid syntax"),
        ("import sys; print(1); sys.exit(3)", False, "1\nExecution failed with exit code 3"),
        ("print(1, flush=True)\nwhile True: pass", False, "1\nExecution timed out after 0.5 s"),
        ("x = bytearray(3 << 30)", False, "Execution ran out of memory: the limit is 256 MiB"),
        ("import os; os.kill(os.getpid(), 11)", False, "Execution was ended by SIGSEGV"),
        ("input()", False, "EOFError: EOF when reading a line"),
    ],
)
def test_what_the_model_reads(executor, code, success, ends_with):
    limits = Limits(wall_seconds=0.5, memory_bytes=256 << 20)
    limits = limits if "timed out" in ends_with else Limits(memory_bytes=256 << 20)
    text, ok = shown(executor, code, limits=limits)
    assert ok is success
    assert text.endswith(ends_with)


def test_the_last_expression_is_printed_when_asked_for(executor):
    assert shown(executor, "x = 41\nx + 1") == ("", True)
    assert shown(executor, "x = 41\nx + 1", last_expression=True) == ("42", True)


def test_the_seed_of_the_context_makes_programs_repeatable(executor):
    def draw(seed):
        token = call_context.set(CallContext("g/0", 0, seed=seed))
        try:
            return shown(executor, "import random; print(random.random())")[0]
        finally:
            call_context.reset(token)

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_a_session_keeps_variables_for_its_trajectory_only(executor):
    shared = ReToolEnv([PythonTool(executor, session=True)], 400)

    async def trajectory(name, start):
        env = shared.for_trajectory(Task(name, "p"))
        try:
            call_context.set(CallContext(name, 0))
            await env.astep(f"<code>x = {start}</code>")
            await env.astep("<code>x += 1</code>")
            return (await env.astep("<code>print(x)</code>"))[0]
        finally:
            env.close()

    async def both():
        return await asyncio.gather(trajectory("g/0", 10), trajectory("g/1", 20))

    assert [text.split()[1] for text in asyncio.run(both())] == ["11", "21"]
    assert "NameError" in asyncio.run(trajectory("g/0", "x"))  # the interpreter had been ended
