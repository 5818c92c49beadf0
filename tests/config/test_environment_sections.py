"""``envs``: what an entry inherits, what it may change, and every mistake with its place."""

import pytest

from agent_r1.config.environments import environment_configs
from agent_r1.config.load import load_config, to_yaml
from agent_r1.errors import ConfigError

FILE = """
data: {max_response_length: 512, prompt_key: question}
tool: {env: retool, env_kwargs: {a: 1}, max_turns: 6}
reward: {name: math, kwargs: {b: 2}, timeout_s: 5}
envs:
  one:
    weight: 3
    tool: {max_turns: 2}
  two:
    weight: 1
    tool: {env: nous}
    reward: {name: exact_match}
    data: {train_files: two.jsonl, max_response_length: 64}
"""


def load(tmp_path, *overrides, text=FILE):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load_config(file, overrides, environ={})


def test_an_entry_is_the_run_with_what_it_changes(tmp_path):
    one, two = environment_configs(load(tmp_path))
    assert (one.name, one.weight, two.name, two.weight) == ("one", 3, "two", 1)
    assert (one.config.tool.env, one.config.tool.max_turns) == ("retool", 2)
    assert one.config.reward.kwargs == {"b": 2}
    assert (two.config.tool.env, two.config.tool.max_turns) == ("nous", 6)
    assert (two.config.reward.name, two.config.reward.timeout_s) == ("exact_match", 5)
    assert two.config.data.prompt_key == "question"
    assert two.config.data.max_response_length == 64
    assert one.config.data.max_response_length == 512


def test_arguments_are_not_inherited_by_another_environment_reward_or_generator(tmp_path):
    one, two = environment_configs(load(tmp_path))
    assert one.config.tool.env_kwargs == {"a": 1}
    assert (two.config.tool.env_kwargs, two.config.reward.kwargs) == ({}, {})


def test_the_runs_files_are_no_entrys_own(tmp_path):
    one, two = environment_configs(load(tmp_path, "data.train_files=all.jsonl"))
    assert one.config.data.train_files == ()
    assert two.config.data.train_files == ("two.jsonl",)


def test_overrides_reach_into_entries_and_the_tree_is_written_and_read_back(tmp_path):
    config = load(tmp_path, "envs.one.tool.max_turns=5", "envs.three.weight=2")
    one, _, three = environment_configs(config)
    assert (one.config.tool.max_turns, three.weight) == (5, 2)
    assert load(tmp_path, text=to_yaml(config)) == config


def test_without_entries_a_run_has_one_environment(tmp_path):
    config = load_config(environ={})
    (only,) = environment_configs(config)
    assert (only.name, only.weight, only.config) == ("", None, config)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("envs.one.tool.max_turn=3", r"tool.max_turn=3 \(envs.one\): did you mean tool.max_turns"),
        ("envs.one.tol.max_turns=3", r"unknown key tol.max_turns=3 \(envs.one\)"),
        ("envs.one.tool.max_turns=0", r"tool.max_turns=0 \(envs.one\) is not a whole number"),
        ("envs.one.weight=0", r"envs.one.weight=0 is not a number above 0"),
        ("envs.one.weight=yes", r"envs.one.weight=true is not a number above 0"),
        ("envs.one.trainer.seed=1", r"envs.one.trainer.seed=1: the run has this once"),
        ("envs.one.data.train_batch_size=1", r"train_batch_size=1: the run has this once"),
        ("envs.one.data.max_response_length=999", r"envs.one: .*above the run's"),
        ("envs.one.weight=null", r"one without a weight beside others"),
        ("envs.a/b.weight=1", r"envs.a/b: a name of letters"),
        ("envs.one=3", r"envs=.* is not a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, override, told):
    with pytest.raises(ConfigError, match=told):
        load(tmp_path, override)


def test_mistakes_of_entries_are_told_together_with_the_runs(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path, "trainer.sed=1", "envs.one.tool.max_turn=3", "envs.two.reward.timeout_s=fast"
        )
    for told in ("3 mistakes", "trainer.sed", "tool.max_turn=3", "reward.timeout_s=fast"):
        assert told in str(caught.value)
