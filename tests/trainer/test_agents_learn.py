"""Agents that nobody here wrote are trained for real, through the endpoint."""

import json
from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.trainer.build import train

from . import agents

AGENTS = Path(agents.__file__)
ENDS = 5


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents-model")
    agents.model().save_pretrained(folder)
    agents.tokenizer().save_pretrained(folder)
    return folder


def settings(model_folder, run_dir, agent, steps):
    moves = [i for i, token in enumerate(agents.VOCABULARY) if token not in agents.CONTROL]
    return [
        "algorithm.adv_estimator=grpo",
        f"data.train_files=generator:{AGENTS}:tasks",
        "data.train_batch_size=8",
        "data.max_prompt_length=16",
        "data.max_response_length=200",
        f"actor_rollout_ref.model.path={model_folder}",
        "actor_rollout_ref.actor.optim.lr=3e-3",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.rollout.n=8",
        f"actor_rollout_ref.rollout.stop_token_ids={moves}",
        "actor_rollout_ref.rollout.trajectory_timeout_s=120",
        "reward.name=agent",
        "tool.env=agent",
        f"tool.env_kwargs.run={AGENTS}:{agent}",
        "tool.tools=[]",
        "tool.max_turns=4",
        f"trainer.total_training_steps={steps}",
        "trainer.logger=[]",
        "trainer.device=cpu",
        f"trainer.default_local_dir={run_dir}",
    ]


def rewards_of(config):
    text = (config.trainer.run_dir / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert max(row["training/logprob_diff_mean"] for row in rows) < 1e-4
    rewards = [row["critic/rewards/mean"] for row in rows]
    return sum(rewards[:ENDS]) / ENDS, sum(rewards[-ENDS:]) / ENDS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("agent", "package", "steps"),
    [
        ("openai_client", "openai", 80),
        ("smolagents_code", "smolagents", 80),
        ("openai_agents", "agents", 80),
    ],
)
def test_a_foreign_agent_learns_to_look_and_to_name_what_it_saw(
    model_folder, tmp_path, agent, package, steps
):
    pytest.importorskip(package)
    config = load_config(None, settings(model_folder, tmp_path / "run", agent, steps), environ={})
    train(config)
    first, last = rewards_of(config)
    assert first < 0.3 and last > 0.9, (first, last)
