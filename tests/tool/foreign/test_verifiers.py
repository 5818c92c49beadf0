"""Packages of verifiers in the loop, against a scripted model.

verifiers pins versions that do not fit beside the other packages here: ``VERIFIERS_PYTHON`` names
an interpreter that has it and this package (``pip install -e . 'verifiers>=0.4,<0.5' uv``).
Without it only the side of this package is tested.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time

import pytest

from agent_r1.errors import ConfigError, DataError, ToolError
from agent_r1.reward.agent import agent
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.rollout.own_loop import OwnLoop
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.testing.engine import HANG
from agent_r1.tool import make_env
from agent_r1.tool.foreign import verifiers
from agent_r1.types import Outcome, Task

PYTHON = os.environ.get("VERIFIERS_PYTHON")
real = pytest.mark.skipif(PYTHON is None, reason="VERIFIERS_PYTHON names no interpreter")
TALKS = {"harness": {"id": "null"}}
PACKAGES = {
    "guess_digit": """
import verifiers.v1 as vf


class Data(vf.TaskData):
    secret: str


class GuessTask(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def found(self, task, trace) -> float:
        if "fail" in trace.last_reply:
            raise RuntimeError("the grader broke")
        return float(task.secret in trace.last_reply)

    @vf.metric
    async def letters(self, trace) -> float:
        return float(len(trace.last_reply))


class GuessDigit(vf.Taskset[GuessTask, vf.TasksetConfig]):
    def load(self):
        for i in range(9):
            yield GuessTask(Data(prompt=f"Say {i}.", secret=str(i)), self.config.task)


__all__ = ["GuessDigit"]
""",
    "stock": """
import verifiers.v1 as vf


class Shelf(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    async def count(self, thing: str) -> str:
        \"\"\"How many there are of a thing.\"\"\"
        return str({"nails": 17}.get(thing, 0))


class StockTask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, trace) -> float:
        return float("17" in trace.last_reply)


class Stock(vf.Taskset[StockTask, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Shelf(vf.ToolsetConfig())]

    def load(self):
        yield StockTask(vf.TaskData(prompt="How many nails?"), self.config.task)


__all__ = ["Stock"]
if __name__ == "__main__":
    Shelf.run()
""",
    "two_players": """
import verifiers.v1 as vf
from guess_digit import GuessDigit


class Config(vf.EnvConfig):
    one: vf.AgentConfig = vf.AgentConfig()
    other: vf.AgentConfig = vf.AgentConfig()


class Both(vf.Env[Config]):
    async def run(self, task, agents):
        await agents.one.run(task)
        await agents.other.run(task)


__all__ = ["GuessDigit", "Both"]
""",
    "haggling": """
from agent_r1.tool import Environment, Start, Step
from agent_r1.trainer.verifiers_export import exported
from agent_r1.types import Reward, Task


class Seller(Environment):
    def reset(self, task):
        self.price = int(task.answer)
        return Start(messages=f"The lamp costs {self.price}.", system="You are a buyer.")

    def step(self, action):
        if not action.isdigit():
            return Step("How much?", reward=0.0)
        return Step(reward=self.price - float(action), terminated=True)

    @property
    def state(self):
        return {"price": self.price}

    def close(self):
        self.price = None


def lamps(split, seed):
    for i in range(2):
        yield Task(f"{split}-{i}", "Buy the lamp. ", answer=str(30 + i))


def margin(trajectory):
    assert trajectory.outcome.value == "finished" and trajectory.state["price"] >= 30
    value = sum(turn.reward for turn in trajectory.turns)
    return Reward(value, {"turns": len(trajectory.turns)})


Tasks, Episodes = exported("haggling.yaml")
__all__ = ["Tasks", "Episodes"]
""",
}
SETTINGS = """
tool: {env: "haggling:Seller", tools: [], max_turns: 4}
reward: {name: "haggling:margin"}
data: {train_files: ["generator:haggling:lamps"]}
actor_rollout_ref: {model: {path: unused}}
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    for name, source in PACKAGES.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "haggling.yaml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def options(taskset, **role):
    return {"config": {"taskset": {"id": taskset}, "agent": {**TALKS, **role}}, "python": PYTHON}


def tasks_of(taskset, **more):
    return list(verifiers.tasks("train", 0, **options(taskset), **more))


def played(env, tasks, replies, *, timeout_s=100.0, group="g"):
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, replies)

    async def run():
        loop = OwnLoop(engine, Codec(tokenizer), env, LoopLimits(8, 4000, timeout_s=timeout_s))
        try:
            runs = (loop.run(task, group, i, Sampling()) for i, task in enumerate(tasks))
            return await asyncio.gather(*runs)
        finally:
            await loop.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def guessing(packages):
    env = make_env("verifiers", [], **options("guess_digit"))
    yield env
    env.close()


@real
def test_the_tasks_are_those_that_the_package_gives(packages):
    found = tasks_of("guess_digit")
    assert [task.prompt[0]["content"] for task in found] == [f"Say {i}." for i in range(9)]
    assert len({task.id for task in found}) == 9
    assert {task.data_source for task in found} == {"guess_digit"}
    chosen = tasks_of("guess_digit", select={"skip": 2, "limit": 3})
    assert [task.id for task in chosen] == [task.id for task in found[2:5]]


@real
def test_an_episode_is_played_and_rewarded_by_the_package(guessing):
    tasks = tasks_of("guess_digit", select={"limit": 3})
    trajectories = played(guessing, tasks, ["It is 1."])
    assert [t.outcome for t in trajectories] == [Outcome.FINISHED] * 3
    assert [agent(t).value for t in trajectories] == [0.0, 2.0, 0.0]
    assert agent(trajectories[1]).parts == {"found": 2.0, "letters": 8.0}
    (turn,) = trajectories[0].turns
    assert turn.text == "It is 1." and bytes(turn.completion.token_ids[:8]) == b"It is 1."
    assert trajectories[0].task.extra["agent_output"] == "It is 1."


@real
def test_a_failed_episode_is_no_fault_of_the_model(guessing):
    (trajectory,) = played(guessing, tasks_of("guess_digit", select={"limit": 1}), ["fail"])
    assert trajectory.outcome is Outcome.TOOL_ERROR
    assert "the grader broke" in trajectory.error


@real
def test_an_episode_out_of_time_leaves_nothing_behind(guessing):
    tasks = tasks_of("guess_digit", select={"limit": 1})
    (late,) = played(guessing, tasks, [HANG], timeout_s=6.0)
    assert late.outcome is Outcome.TIMEOUT
    (good,) = played(guessing, tasks, ["0"])
    assert good.outcome is Outcome.FINISHED and agent(good).value == 2.0


@real
def test_a_process_that_dies_is_started_again(guessing):
    tasks = tasks_of("guess_digit", select={"limit": 1})
    before = guessing._process._process
    before.kill()
    before.wait()
    (trajectory,) = played(guessing, tasks, ["0"])
    assert trajectory.outcome is Outcome.FINISHED
    assert guessing._process._process.pid != before.pid


@real
def test_the_tools_of_a_package_are_called(packages):
    env = make_env("verifiers", [], **options("stock"))

    def answer(asked):
        if "<tool_response>" in asked.prompt_text:
            return "There are 17."
        name = re.search(r'"name": "([^"]*count)"', asked.prompt_text)[1]
        call = {"name": name, "arguments": {"thing": "nails"}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    try:
        (trajectory,) = played(env, tasks_of("stock"), answer)
    finally:
        env.close()
    assert trajectory.outcome is Outcome.FINISHED, trajectory.error
    assert len(trajectory.turns) == 2 and agent(trajectory).value == 1.0
    assert "17" in byte_tokenizer().decode(list(trajectory.turns[1].prompt_ids))
    assert len(trajectory.samples()) == 1, "the second request goes on the ids of the first"


@real
def test_who_is_the_policy_and_where_programs_run_is_never_guessed(packages):
    with pytest.raises(ConfigError, match=r"exactly one can be.*client"):
        verifiers.VerifiersEnv(taskset="two_players", python=PYTHON)
    with pytest.raises(ConfigError, match=r"executes what the model writes.*runtime"):
        verifiers.VerifiersEnv(taskset="guess_digit", python=PYTHON)
    with pytest.raises(ConfigError, match="no_such_package"):
        verifiers.VerifiersEnv(taskset="no_such_package", python=PYTHON)


@real
def test_an_environment_of_ours_is_a_package_of_theirs(packages):
    env = make_env("verifiers", [], **options("haggling"))
    tasks = tasks_of("haggling")
    try:
        trajectories = played(env, tasks, ["Hello!", "20"])
    finally:
        env.close()
    assert [t.outcome for t in trajectories] == [Outcome.FINISHED] * 2, trajectories[0].error
    assert [agent(t).value for t in trajectories] == [10.0, 11.0]
    assert agent(trajectories[0]).parts == {"reward": 10.0, "turns": 2.0}
    opening = byte_tokenizer().decode(list(trajectories[0].turns[0].prompt_ids))
    assert "You are a buyer." in opening and "Buy the lamp. The lamp costs 30." in opening
    assert "How much?" in byte_tokenizer().decode(list(trajectories[0].turns[1].prompt_ids))


# --- the side of this package ------------------------------------------------------------

THEIRS = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
left = set()
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "cancel":
        print(json.dumps({"id": request["id"], "error": "given up"}), flush=True)
    elif request["task"].get("dies"):
        if request["task"].get("leaves"):  # a child that holds its input open, and not its output
            import subprocess
            subprocess.Popen(["sleep", "30"], stdin=0, stdout=subprocess.DEVNULL)
        sys.exit(3)
    elif not request["task"].get("hangs"):
        done = {"reward": 1.0, "parts": {}, "output": request["url"]}
        print(json.dumps({"id": request["id"], **done}), flush=True)
"""


@pytest.fixture
def ours(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(THEIRS)
    monkeypatch.setattr(verifiers, "_PROGRAM", program)
    env = verifiers.VerifiersEnv(taskset="any")
    yield env
    env.close()


def a_call(env, **data):
    from agent_r1.tool.envs.agent import AgentCall

    task = Task("t", "p", extra={"verifiers": data})
    return env._play(AgentCall(task, "http://127.0.0.1:1/v1", "sk-a", "policy", "g/0", 0))


def test_an_episode_asks_at_the_address_of_its_trajectory(ours):
    assert asyncio.run(a_call(ours)).output == "http://127.0.0.1:1/s/sk-a/v1"


def test_what_is_given_up_has_ended_before_its_key_is_used_again(ours):
    async def given_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(a_call(ours, hangs=True), 0.2)
        return ours._process._waiting

    assert asyncio.run(given_up()) == {}
    assert ours._process.alive


def test_a_death_is_told_and_the_next_episode_has_a_new_process(ours):
    with pytest.raises(ToolError, match="ended"):
        asyncio.run(a_call(ours, dies=True))
    while ours._process.alive:
        time.sleep(0.01)
    assert asyncio.run(a_call(ours)).reward == 1.0


def test_nobody_waits_for_a_process_whose_children_outlive_it(ours):
    with pytest.raises(ToolError, match="ended"):
        asyncio.run(a_call(ours, dies=True, leaves=True))
    with pytest.raises(ToolError, match="ended"):
        ours._process.ask(do="run", task={}, url="", model="")
    assert asyncio.run(a_call(ours)).reward == 1.0


def test_closing_ends_the_process_at_once(ours):
    started = time.monotonic()
    ours.close()
    assert not ours._process.alive and time.monotonic() - started < 5


def test_a_package_must_be_named():
    with pytest.raises(ConfigError, match="taskset=my-package"):
        verifiers.VerifiersEnv()


def test_validation_tasks_are_never_those_of_training():
    with pytest.raises(DataError, match="val_generator_kwargs"):
        next(verifiers.tasks("val", 0, taskset="any"))


def test_an_interpreter_without_the_package_is_told(tmp_path):
    found = subprocess.run([sys.executable, "-c", "import verifiers"], capture_output=True)
    if found.returncode == 0:
        pytest.skip("this interpreter has verifiers")
    with pytest.raises(ConfigError, match=r"agent-r1\[verifiers\]"):
        verifiers.VerifiersEnv(taskset="any")


def test_a_task_of_another_kind_is_told(ours):
    from agent_r1.tool.envs.agent import AgentCall

    call = AgentCall(Task("t", "p"), "http://127.0.0.1:1/v1", "sk-a", "policy", "g/0", 0)
    with pytest.raises(ToolError, match="generator:verifiers"):
        asyncio.run(ours._play(call))
