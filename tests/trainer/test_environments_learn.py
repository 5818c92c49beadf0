"""The worlds of examples/environments are learned for real: a user, a lake, a long story,
and two of them in one run."""

import json
from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.registry import import_path
from agent_r1.trainer.build import train

ROOT = Path(__file__).parents[2]
WORLD = "examples/environments/world.py"
ENDS = 5
METRICS = {"mixture": ("env/guess/reward/mean", "env/story/reward/mean")}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world-model")
    for part in ("model", "tokenizer"):
        import_path(f"{ROOT / WORLD}:{part}")().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", ["guess", "lake", "story", "mixture"])
def test_a_world_is_learned(world, model_folder, tmp_path, monkeypatch):
    if world == "lake":
        pytest.importorskip("gymnasium")
    monkeypatch.chdir(ROOT)
    settings = [
        f"actor_rollout_ref.model.path={model_folder}",
        f"trainer.default_local_dir={tmp_path}/run",
        "trainer.logger=[]",
        "trainer.trajectory_file=jsonl",
        "trainer.device=cpu",
    ]
    config = load_config(f"examples/environments/{world}.yaml", settings, environ={})
    train(config)
    run = config.trainer.run_dir
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("training/logprob_diff_mean", 0.0) for row in rows) < 1e-4
    for metric in METRICS.get(world, ("critic/rewards/mean",)):
        rewards = [row[metric] for row in rows if metric in row]
        first, last = sum(rewards[:ENDS]) / ENDS, sum(rewards[-ENDS:]) / ENDS
        assert first < 0.3 and last > 0.9, (metric, first, last)
    if world == "story":
        records = map(json.loads, (run / "trajectories.jsonl").read_text().splitlines())
        solved = [r for r in records if r["split"] == "train" and r["reward"]["value"] == 1.0]
        assert solved and all(restarts(record) for record in solved[-50:])


def restarts(record):
    """How often the context was replaced: a prompt that does not go on from the turn before."""
    return sum(turn["prompt_ids"] is not None for turn in record["turns"][1:])


@pytest.mark.parametrize("world", ["guess", "lake", "story", "mixture"])
def test_every_word_ends_a_turn(world, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(f"examples/environments/{world}.yaml", [], environ={})
    words = import_path(f"{ROOT / WORLD}:VOCABULARY")
    control = import_path(f"{ROOT / WORLD}:CONTROL")
    ends = [i for i, word in enumerate(words) if word not in control]
    assert list(config.actor_rollout_ref.rollout.stop_token_ids) == ends
