"""Commands that look at one environment know the entries of ``envs``."""

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from agent_r1.cli import cli
from agent_r1.config import load_config
from agent_r1.errors import ConfigError, DataError
from agent_r1.testing import byte_tokenizer, tiny_model
from agent_r1.trainer.chat import chat

WORLDS = """
from agent_r1.tool import BaseToolEnv, Environment, Start, Step
from agent_r1.types import Task

class Guess(Environment):
    def reset(self, task):
        self.number = int(task.answer or 7)
        return Start(messages="Guess. ")

    def step(self, action):
        right = action.strip() == str(self.number)
        return Step("" if right else "No. ", reward=float(right), terminated=right)

class Doubling(BaseToolEnv):
    def step(self, raw_response):
        return f" [{raw_response.strip()}{raw_response.strip()}] ", [True], len(raw_response) < 4

class Halving(BaseToolEnv):
    def step(self, raw_response):
        return " [h] ", [True], len(raw_response) < 4

def numbers(split, seed):
    i = 0
    while True:
        yield Task(f"{split}-{i}", "A game. ", answer=str(i + 3), data_source="numbers")
        i += 1
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "worlds.py").write_text(WORLDS)
    rows = [
        {"prompt": f"Say {i}. ", "answer": i, "data_source": "said", "env": name}
        for i, name in enumerate(("guess", "say", "say"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data": {"train_files": f"{tmp_path}/rows.jsonl", "answer_key": "answer"},
        "tool": {"tools": [], "env": f"{tmp_path}/worlds.py:Halving"},
        "envs": {
            "guess": {
                "tool": {"env": f"{tmp_path}/worlds.py:Guess", "max_turns": 3},
                "reward": {"name": "environment"},
                "data": {"train_files": f"generator:{tmp_path}/worlds.py:numbers"},
            },
            "say": {
                "tool": {"env": f"{tmp_path}/worlds.py:Doubling"},
                "reward": {"name": "exact_match"},
            },
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


def run(*arguments, said=""):
    return CliRunner().invoke(cli, list(map(str, arguments)), input=said, catch_exceptions=False)


def test_tasks_are_shown_by_environment_and_endless_ones_only_as_asked(file):
    shown = run("data", "show", "--config", file, "-n", "1").output
    assert "guess: 2 train tasks: 1 said, 1 numbers" in shown
    assert "say: 2 train tasks: 2 said" in shown
    assert shown.count("---") == 2 and shown.index("say: 2") > shown.index("Say 0.")


def test_a_task_of_no_environment_and_a_split_without_tasks_are_told(file):
    with pytest.raises(DataError, match=r"3 tasks .* name none"):
        run("data", "show", "--config", file, "data.env_key=where")
    with pytest.raises(DataError, match=r"no val tasks: .* envs\.guess\.data\.val_files"):
        run("data", "show", "--config", file, "--split", "val")


def test_answers_are_graded_by_the_reward_of_their_environment(file):
    limit = "envs.guess.data.train_max_samples=2"
    lines = run("data", "check", "--config", file, limit).output.splitlines()
    assert lines[0] == "guess: 'environment' is said by the episode itself and grades no answers"
    assert lines[1] == "say: 2 of 2 reference answers are graded as right by 'exact_match'"


def test_an_entry_is_played_with_its_own_task_limits_and_reward(file):
    done = run("env", "play", "guess", "--config", file, "--task", "1", said="5\n3\n")
    assert "A game. Guess." in done.output and "No." in done.output
    assert "finished after 2 turns" in done.output and "reward 1" in done.output
    cut = run("env", "play", "guess", "--config", file, "--task", "1", said="1\n" * 9)
    assert "turn_limit after 3 turns" in cut.output
    other = run("env", "play", "say", "--config", file, "--task", "1", said="ab\nlong enough\n")
    assert "Say 2." in other.output and "[abab]" in other.output
    with pytest.raises(ConfigError, match="there are 2 training tasks"):
        run("env", "play", "say", "--config", file, "--task", "2")


def test_an_entry_is_checked_and_a_name_that_is_none_is_told(file):
    done = run("env", "check", "say", "--config", file, "--text", "a")
    assert done.exit_code == 0 and "say keeps its contract" in done.output
    with pytest.raises(ConfigError, match="sy is no entry of envs, which has guess, say, and: "):
        run("env", "check", "sy", "--config", file)


def test_traces_are_made_in_the_chosen_environment(file, tmp_path):
    trace = {"prompt": "p", "segments": [], "source": "s"}
    for role, text in (("model", "ab"), ("tool", " [old] "), ("model", "long enough")):
        trace["segments"].append({"role": role, "text": text})
    (tmp_path / "traces.jsonl").write_text(json.dumps(trace) + "\n")
    out = tmp_path / "out.jsonl"
    rerun = ("data", "traces", "rerun", tmp_path / "traces.jsonl", "--out", out, "--config", file)
    with pytest.raises(ConfigError, match=r"envs has guess, say, .* choose it with --env NAME"):
        run(*rerun)
    with pytest.raises(ConfigError, match="no 'sya', did you mean 'say'"):
        run(*rerun, "--env", "sya")
    with pytest.raises(ConfigError, match="keeps a state of its own"):
        run(*rerun, "--env", "guess")
    assert not out.exists()
    run(*rerun, "--env", "say")
    assert "[abab]" in out.read_text()


def test_a_conversation_is_held_in_the_chosen_environment(file, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer(chat_template=None).save_pretrained(tmp_path / "model")
    # every byte ends a turn
    settings = [
        f"actor_rollout_ref.model.path={tmp_path / 'model'}",
        "data.max_prompt_length=64",
        "data.max_response_length=24",
        f"actor_rollout_ref.rollout.stop_token_ids={list(range(256))}",
        "tool.max_turns=2",
        "trainer.device=cpu",
    ]
    config = load_config(file, settings, environ={})
    for chosen, told, seen in ((None, "guess", "No."), ("say", "say", "[")):
        out = io.StringIO()
        chat(config, "hello", env=chosen, console=Console(file=out, width=500))
        assert f"in the environment {told}; --env chooses another" in out.getvalue()
        assert seen in out.getvalue()
    with pytest.raises(ConfigError, match="envs has no 'sai'"):
        chat(config, "hello", env="sai")
