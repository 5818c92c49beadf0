from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.testing import byte_tokenizer, tiny_model

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """A folder with a random model and the byte tokenizer."""
    folder = tmp_path_factory.mktemp("toy-model")
    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=None).save_pretrained(folder)
    return folder


@pytest.fixture
def toy_config(toy_model, tmp_path):
    """``make(*overrides)``: a configuration that trains in a second or two."""

    def make(*overrides, run="run"):
        settings = [
            f"data.train_files=generator:{TOY}:tasks",
            f"data.val_files=generator:{TOY}:tasks",
            "data.val_generator_kwargs={count: 4}",
            "data.train_batch_size=4",
            "data.max_prompt_length=16",
            "data.max_response_length=40",
            f"actor_rollout_ref.model.path={toy_model}",
            "actor_rollout_ref.actor.optim.lr=1e-2",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.rollout.response_length=12",
            f"actor_rollout_ref.rollout.stop_token_ids={list(range(64))}",
            "critic.optim.lr=1e-2",
            f"tool.env={TOY}:ToyEnv",
            "tool.tools=[]",
            "tool.max_turns=3",
            f"reward.name={TOY}:likes_low_bytes",
            "trainer.total_training_steps=4",
            "trainer.logger=[]",
            "trainer.device=cpu",
            f"trainer.default_local_dir={tmp_path / run}",
        ]
        return load_config(None, [*settings, *overrides], environ={})

    return make
