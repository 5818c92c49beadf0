"""The evaluation command, on the toy."""

import json

import pytest

from agent_r1.errors import ConfigError
from agent_r1.monitor.records import load_trajectories
from agent_r1.trainer.evaluate import evaluate, markdown_table, report

from .conftest import TOY

SAMPLED = [
    "actor_rollout_ref.rollout.val_kwargs={temperature: 1.0, n: 4}",
    "tool.max_turns=2",
]


def test_an_evaluation_reports_every_source_with_intervals(toy_config, tmp_path):
    (source,) = evaluate(toy_config(*SAMPLED), tmp_path / "out")
    assert (source.source, source.tasks, source.samples) == ("toy", 4, 4)
    assert set(source.estimates) == {"avg@4", "pass@2", "pass@4", "reward"}
    average, best = source.estimates["avg@4"], source.estimates["pass@4"]
    assert average.low <= average.value <= average.high
    assert average.value <= source.estimates["pass@2"].value <= best.value
    stored = list(load_trajectories(tmp_path / "out" / "trajectories.jsonl"))
    by_hand = sum(t.reward.parts["accuracy"] for t in stored) / len(stored)
    assert average.value == pytest.approx(by_hand)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results[0]["estimates"]["avg@4"]["value"] == average.value
    assert "| toy | 4 |" in (tmp_path / "out" / "table.md").read_text()


def test_an_interrupted_evaluation_goes_on_where_it_stopped(toy_config, tmp_path):
    whole = evaluate(toy_config(*SAMPLED), tmp_path / "whole")
    stopping = toy_config(
        *SAMPLED,
        f"tool.env={TOY}:InterruptingEnv",
        f"tool.env_kwargs={{at: val.2, marker: {tmp_path / 'pressed'}}}",
    )
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopping, tmp_path / "out")
    early = {t.id for t in load_trajectories(tmp_path / "out" / "trajectories.jsonl")}
    assert len(early) < 16
    again = evaluate(stopping, tmp_path / "out")
    stored = list(load_trajectories(tmp_path / "out" / "trajectories.jsonl"))
    assert len({t.id for t in stored}) == 16
    assert markdown_table(again) == markdown_table(whole)


def test_another_evaluation_is_not_mixed_in(toy_config, tmp_path):
    evaluate(toy_config(*SAMPLED), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"\(trainer\.seed: 0 -> 1\); choose another --out"):
        evaluate(toy_config(*SAMPLED, "trainer.seed=1"), tmp_path / "out")


def test_an_evaluation_of_an_older_version_goes_on(toy_config, tmp_path):
    evaluate(toy_config(*SAMPLED), tmp_path / "out")
    settings = tmp_path / "out" / "config.yaml"
    lines = settings.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "custom_chat_template" not in line]
    assert len(kept) == len(lines) - 1
    settings.write_text("".join(kept))
    (source,) = evaluate(toy_config(*SAMPLED), tmp_path / "out")
    assert source.tasks == 4 and settings.read_text() == "".join(lines)


def test_failed_trajectories_are_counted_apart(toy_config, tmp_path):
    broken = toy_config(*SAMPLED, "tool.env_kwargs={fail_on: '1:'}")
    (source,) = evaluate(broken, tmp_path / "out")
    assert 0 < source.failed <= 4


def test_a_report_without_calls_has_no_success_share(toy_config, tmp_path):
    from dataclasses import replace

    from agent_r1.testing import make_trajectory
    from agent_r1.types import Reward

    silent = replace(make_trajectory(["the answer is \\boxed{7}"]), reward=Reward(1.0))
    (source,) = report([silent])
    assert source.tool_success_share is None
    assert source.estimates["avg@1"].value == 1.0
