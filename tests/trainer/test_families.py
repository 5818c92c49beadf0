"""Every supported family of models takes a step of reinforcement learning."""

import json

import pytest
import torch

from agent_r1.errors import ModelError
from agent_r1.models.load import load_model
from agent_r1.testing import byte_tokenizer
from agent_r1.trainer.build import train

WINDOW = {"sliding_window": 16, "head_dim": 8}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "mistral": WINDOW,
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma": {"head_dim": 16},
    "gemma2": {**WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 8},
}


def family(name, folder, **options):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        name,
        **{
            "vocab_size": 264,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
            "bos_token_id": None,
            "eos_token_id": 258,
            "pad_token_id": 256,
            **options,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:  # ones or zeros would not tell (1 + w) from w
                torch.nn.init.normal_(parameter, parameter.mean().item(), 0.2)
    model.save_pretrained(folder)
    byte_tokenizer(chat_template=None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_and_trainer_agree_over_turns_and_the_weights_move(name, toy_config, tmp_path):
    folder = family(name, tmp_path / "model", **FAMILIES[name])
    config = toy_config(
        f"actor_rollout_ref.model.path={folder}",
        "actor_rollout_ref.rollout.response_length=14",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "data.max_response_length=60",
        "trainer.total_training_steps=1",
        "trainer.save_freq=1",
        "trainer.test_freq=-1",
        "data.val_files=[]",
    )
    run = train(config)
    (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["training/logprob_diff_mean"] < 1e-4
    assert line["training/logprob_diff_max"] < 1e-3
    assert line["num_turns/mean"] > 1
    before = load_model(folder)
    after = load_model(run / "checkpoints" / "step-000001" / "policy")
    moved = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert all(moved)


def test_a_family_that_cannot_be_packed_is_refused_with_the_reason(tmp_path):
    mixed = ["linear_attention", "full_attention"]
    folder = family("qwen3_next", tmp_path / "model", layer_types=mixed, num_experts=0)
    with pytest.raises(ModelError, match="linear_attention, which cannot be packed"):
        load_model(folder)
