"""`agent-r1 eval --server`: the whole command against a server on this machine."""

import json
import re

import pytest
from model_server import Refuses, serving

from agent_r1.cli import cli
from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError, TemplateError
from agent_r1.monitor.records import load_trajectories
from agent_r1.trainer.build import train

ENVIRONMENT = """
from agent_r1.tool.base import BaseToolEnv

class Calculator(BaseToolEnv):
    stop_strings = ("</code>",)

    def step(self, raw_response):
        code = raw_response.rpartition("<code>")[2]
        if not code.endswith("</code>"):
            return "", [], False
        a, b = code.removesuffix("</code>").split("+")
        return f"\\n<interpreter>{int(a) + int(b)}</interpreter>\\n", [True], True
"""
MUSING = " Think." * 300
"""Longer than data.max_prompt_length, were a character a token."""
SETTINGS = [
    "tool.tools=[]",
    "reward.name=math",
    "actor_rollout_ref.rollout.val_kwargs={temperature: 1.0, n: 4}",
    "actor_rollout_ref.rollout.server.retries=0",
]


def adds(body):
    """Calls the tool, believes it, and is wrong about every fourth sample of source ``b``."""
    text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    a, b = re.search(r"What is (\d+) plus (\d+)", text).groups()
    told = text if "prompt" in body else body["messages"][-1]["content"]
    output = re.search(r"<interpreter>(\d+)", told)
    if output is None:
        return f"<code>{a}+{b}</code> and more"
    wrong = int(a) > 10 and body["seed"] % 4 == 0
    return f"The answer is \\boxed{{{int(output[1]) + wrong}}}."


@pytest.fixture
def overrides(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {a} plus {a + 1}?{MUSING}"}],
            "reward_model": {"ground_truth": str(2 * a + 1)},
            "data_source": source,
        }
        for source, numbers in (("a", (1, 2, 3)), ("b", (11, 12)))
        for a in numbers
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    return [
        f"data.val_files={tmp_path}/tasks.jsonl",
        f"tool.env={tmp_path}/environment.py:Calculator",
        *SETTINGS,
    ]


def evaluate(server, out, *overrides):
    words = ["eval", "--server", server.url, "--out", str(out), *overrides]
    cli.main(words, standalone_mode=False)
    return json.loads((out / "results.json").read_text())


def test_everything_is_measured_without_a_tokenizer(overrides, tmp_path, capsys):
    with serving(adds) as server:
        first, second = evaluate(server, tmp_path / "out", *overrides)
    assert capsys.readouterr().out == (tmp_path / "out" / "table.md").read_text()
    assert (first["source"], first["tasks"], first["samples"], first["failed"]) == ("a", 3, 4, 0)
    names = {"avg@4", "pass@2", "pass@4", "maj@4", "reward"}
    assert set(first["estimates"]) == set(second["estimates"]) == names
    assert first["estimates"]["avg@4"]["value"] == 1.0
    stored = list(load_trajectories(tmp_path / "out" / "trajectories.jsonl"))
    assert len(stored) == 20
    by_hand = [t.reward.parts["accuracy"] for t in stored if t.task.data_source == "b"]
    estimate = second["estimates"]["avg@4"]
    assert estimate["value"] == pytest.approx(sum(by_hand) / 8)
    assert 0 < sum(by_hand) < 8
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert first["tool_call_share"] == first["tool_success_share"] == 1 and first["mean_turns"] == 2
    assert {t.turns[0].text for t in stored if t.task.answer == "3"} == {"<code>1+2</code>"}
    assert all(turn.completion.logprobs is None for t in stored for turn in t.turns)
    assert "<interpreter>3</interpreter>" in stored[0].transcript
    assert server.most_in_flight <= 32


def test_a_local_tokenizer_renders_the_prompts_of_training(overrides, tmp_path, toy_model):
    tokenizer = f"actor_rollout_ref.model.path={toy_model}"
    # The toy has no chat template, and these tasks are messages.
    with serving(adds) as server, pytest.raises(TemplateError, match="plain text"):
        evaluate(server, tmp_path / "x", *overrides, tokenizer)
    text = tmp_path / "text.jsonl"
    row = {
        "prompt": "What is 3 plus 4?",
        "reward_model": {"ground_truth": "7"},
        "data_source": "a",
    }
    text.write_text(json.dumps(row) + "\n")
    with serving(adds) as server:
        (source,) = evaluate(
            server,
            tmp_path / "out",
            *overrides,
            f"data.val_files={text}",
            tokenizer,
            "actor_rollout_ref.rollout.server.api=completions_text",
        )
    assert source["estimates"]["avg@4"]["value"] == 1.0
    paths = {path for path, _ in server.requests}
    assert paths == {"/v1/completions"}
    assert server.requests[-1][1]["prompt"].startswith("What is 3 plus 4?<code>3+4</code>\n<inter")


def test_what_is_there_is_not_asked_again(overrides, tmp_path):
    calls = []

    def fails_at_first(body):
        calls.append(body)
        if len(calls) in (3, 7):
            raise Refuses(500)
        return adds(body)

    with serving(fails_at_first) as server:
        broken = evaluate(server, tmp_path / "out", *overrides)
        assert sum(source["failed"] for source in broken) == 2
        before = len(calls)
        whole = evaluate(server, tmp_path / "out", *overrides)
        assert sum(source["failed"] for source in whole) == 0
        assert len(calls) - before <= 4
        again = len(calls)
        assert evaluate(server, tmp_path / "out", *overrides) == whole
        assert len(calls) == again


def test_a_model_that_is_not_served_is_refused_before_anything_is_written(overrides, tmp_path):
    with serving(adds) as server, pytest.raises(ConfigError, match="choose --model from: scripted"):
        evaluate(server, tmp_path / "out", "--model", "other", *overrides)
    assert not (tmp_path / "out").exists()


def test_a_server_cannot_be_trained_on(overrides):
    settings = [
        *overrides,
        "actor_rollout_ref.rollout.name=openai",
        "actor_rollout_ref.rollout.server.url=http://127.0.0.1:9/v1",
    ]
    with pytest.raises(ConfigError, match=r"cannot train.*embedded"):
        train(load_config(None, settings, environ={}))


def test_settings_of_a_server_that_do_not_fit_together(overrides):
    url = "actor_rollout_ref.rollout.server.url"
    for words, message in (
        (["actor_rollout_ref.rollout.name=openai"], r"needs .*server\.url"),
        ([f"{url}=http://h"], "would not use it"),
        (["actor_rollout_ref.rollout.name=openai", f"{url}=h:8"], "must begin with http"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(None, words, environ={})
    with pytest.raises(ConfigError, match="give both"):
        cli.main(["eval", "--model", "x", *overrides], standalone_mode=False)


def test_chat_markup_cannot_travel_in_messages(overrides, tmp_path):
    with serving(adds) as server, pytest.raises(ConfigError, match="api=completions"):
        evaluate(server, tmp_path / "out", *overrides, "tool.env=nous", "tool.tools=[python]")
