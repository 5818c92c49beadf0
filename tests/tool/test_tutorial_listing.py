"""The published tutorial's environment, pasted verbatim, is an environment here."""

import asyncio
import re
import textwrap
from pathlib import Path

import pytest

from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import FakeExecutor, ScriptedEngine, byte_tokenizer, check_tool_env
from agent_r1.tool.base import BaseTool, BaseToolEnv
from agent_r1.tool.tools.python import PythonTool
from agent_r1.types import Outcome, Task

TUTORIAL = Path(__file__).parents[3] / "shared" / "tutorial.txt"
METHODS = ("extract_tool_calls", "format_tool_response", "stop", "step")


def listing(page: str) -> str:
    """The class head and the four methods of the page, each exactly as printed."""
    head = re.search(r"^class ReToolEnv\(BaseToolEnv\):\n(?:    .*\n|\n)+", page, re.MULTILINE)
    assert head
    parts = [head[0].rstrip()]
    for name in METHODS:
        method = re.search(rf"^def {name}\(self.*\n(?:[ ]+.*\n|\n)+", page, re.MULTILINE)
        assert method, name
        parts.append(textwrap.indent(method[0].rstrip(), "    "))
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def tutorial_env():
    if not TUTORIAL.is_file():
        pytest.skip("the tutorial's text is not beside this repository")
    source = (
        "from typing import Any, List, Tuple\n"
        "from agent_r1.tool.base import BaseTool, BaseToolEnv\n\n" + listing(TUTORIAL.read_text())
    )
    namespace: dict = {}
    exec(compile(source, str(TUTORIAL), "exec"), namespace)
    return namespace["ReToolEnv"]


def make(env_class, answer="4\n"):
    return env_class([PythonTool(FakeExecutor(answer))], max_tool_response_length=20)


def test_it_overrides_these_methods_only(tutorial_env):
    assert issubclass(tutorial_env, BaseToolEnv)
    own = {name for name in vars(tutorial_env) if not name.startswith("_")}
    assert own == set(METHODS)


def test_it_steps_alone_in_a_batch_and_off_the_loop(tutorial_env):
    env = make(tutorial_env)
    call = "Compute.\n<code>\nprint(2 + 2)\n</code>"
    expected = ("\n<interpreter>\n4\n</interpreter>\n", [True], True)
    assert env.step(call) == expected
    assert asyncio.run(env.astep(call)) == expected
    assert env.batch_step([call, "done"]) == ([expected[0], ""], [[True], []], [True, False])
    assert make(tutorial_env, "x" * 30).step(call)[0].count("x" * 20 + "...\n") == 1


def test_a_tool_that_returns_a_dict_shows_its_content_and_not_its_keys(tutorial_env):
    class Dict(BaseTool):
        name = "python"

        def execute(self, args):
            return {"content": f"ran {len(args['code'])}", "success": False}

    observation, success, _ = tutorial_env([Dict()], 100).step("<code>\n1\n</code>")
    assert "ran " in observation and "content" not in observation
    assert success == [False]


def test_it_passes_the_check(tutorial_env):
    report = check_tool_env(make(tutorial_env), ["<code>\nprint(1)\n</code>", "It is 1."])
    assert report.calls == 1


def test_it_runs_a_whole_trajectory(tutorial_env):
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, ["<code>\nprint(2 + 2)\n</code>", "It is \\boxed{4}."])
    loop = AgentLoop(engine, Codec(tokenizer), make(tutorial_env), LoopLimits(4, 2000))
    task = Task("t", ({"role": "user", "content": "2 + 2?"},), "4")
    trajectory = asyncio.run(loop.run(task, "g", 0, Sampling(stop=("</code>",))))
    assert (trajectory.outcome, trajectory.error) == (Outcome.FINISHED, None)
    assert trajectory.transcript == (
        "<code>\nprint(2 + 2)\n</code>\n<interpreter>\n4\n</interpreter>\nIt is \\boxed{4}."
    )
    assert trajectory.model_text == "<code>\nprint(2 + 2)\n</code>It is \\boxed{4}."
