"""A real OpenEnv server in the loop, against a scripted model.

The server needs more packages than its client: ``OPENENV_PYTHON`` names an interpreter that has
them (``pip install openenv-core``); without it this one is tried.
"""

import asyncio
import os
import subprocess
import sys

import pytest

pytest.importorskip("openenv.core.generic_client")

from agent_r1.errors import ConfigError
from agent_r1.reward.agent import environment
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool import make_env
from agent_r1.types import Outcome, Task

PYTHON = os.environ.get("OPENENV_PYTHON", sys.executable)
SERVER = """
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    number: str


class Told(Observation):
    text: str = ""


class Guessing(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self._state = State()

    def reset(self, seed=None, episode_id=None, most=10, **kwargs):
        self.secret = seed % most
        return Told(text=f"A number below {most}.")

    def step(self, action, timeout_s=None, **kwargs):
        if action.number == "crash":
            import os
            os._exit(3)
        right = int(action.number) == self.secret
        word = "lower" if int(action.number) > self.secret else "higher"
        return Told(text="right" if right else word, done=right, reward=1.0 if right else -0.25)

    @property
    def state(self):
        return self._state


app = create_fastapi_app(Guessing, Guess, Told, max_concurrent_envs=8)
"""
TASK = Task("t", "Guess. ", extra={"seed": 7})
FIELDS = {"action_field": "number", "observation_field": "text"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    found = subprocess.run(
        [PYTHON, "-c", "import openenv.core.env_server, uvicorn"], capture_output=True, check=False
    )
    if found.returncode:
        pytest.skip("OPENENV_PYTHON names no interpreter that can serve OpenEnv")
    folder = tmp_path_factory.mktemp("guessing")
    (folder / "guessing_game.py").write_text(SERVER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield "guessing_game:app"


@pytest.fixture
def envs(app):
    made = make_env("openenv", [], server=app, python=PYTHON, **FIELDS)
    yield made
    made.close()


def play(envs, script, task=TASK):
    codec = Codec(byte_tokenizer())
    loop = AgentLoop(ScriptedEngine(codec.tokenizer, script), codec, envs, LoopLimits(9, 4000))
    return asyncio.run(loop.run(task, "g", 0, Sampling()))


def test_an_episode_is_the_servers(envs):
    trajectory = play(envs, ["9", "<action>3</action>", "7"])
    assert trajectory.opening == "Guess. \nA number below 10.\n"
    told = [turn.observation_text for turn in trajectory.turns]
    assert told[:2] == ["\nlower\n", "\nhigher\n"]
    assert trajectory.outcome is Outcome.FINISHED and environment(trajectory).value == 0.5
    assert trajectory.state["return"] == 0.5 and trajectory.state["steps"] == 3
    other = play(envs, ["3"], Task("t", "Guess. ", extra={"seed": 7, "options": {"most": 4}}))
    assert other.opening == "Guess. \nA number below 4.\n" and environment(other).value == 1.0


def test_a_server_that_is_lost_ends_the_episode_as_a_tool_error(envs):
    trajectory = play(envs, ["crash"])
    assert trajectory.outcome is Outcome.TOOL_ERROR
    assert play(envs, ["7"]).outcome is Outcome.TOOL_ERROR


def test_actions_may_be_objects_and_observations_shown_whole(app):
    made = make_env("openenv", [], server=app, python=PYTHON)
    try:
        trajectory = play(made, ["no", '{"number": "7"}'])
    finally:
        made.close()
    assert "JSON object" in trajectory.turns[0].observation_text
    assert '"text": "A number below 10."' in trajectory.opening
    assert environment(trajectory).value == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of tool.env_kwargs.url and server"),
        ({"url": "http://127.0.0.1:9", "server": "a:b"}, "one of tool.env_kwargs.url and server"),
        ({"url": "http://127.0.0.1:9"}, "no OpenEnv server answers"),
        ({"server": "no_such_module:app"}, "did not answer"),
    ],
)
def test_what_cannot_work_is_found_before_the_run(options, words):
    with pytest.raises(ConfigError, match=words):
        make_env("openenv", [], **options)
