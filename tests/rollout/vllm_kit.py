"""A real vLLM on the CPU with a tiny model. ``VLLM_PYTHON`` names the interpreter that has it."""

import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.models.weights import ModuleWeights
from agent_r1.rollout.engines.vllm_open import open_vllm
from agent_r1.testing import byte_tokenizer, tiny_model

WINDOW = 512


def python():
    found = os.environ.get("VLLM_PYTHON")
    if not found:
        pytest.skip("VLLM_PYTHON names no interpreter that has vLLM")
    return found


def model_of(seed=0, tied=False):
    """Random weights, scaled so that it does not repeat itself."""
    torch.manual_seed(seed)
    model = tiny_model(
        len(byte_tokenizer()),
        hidden_size=64,
        heads=2,
        kv_heads=1,
        tie_word_embeddings=tied,
        seed=seed,
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model


def model_folder(root: Path, tied=False) -> Path:
    model_of(tied=tied).save_pretrained(root)
    byte_tokenizer().save_pretrained(root)
    return root


def settings(**options):
    return RolloutConfig(
        name="vllm",
        max_num_seqs=64,
        vllm=VLLMConfig(
            python=python(),
            args=("--block-size", "32"),
            env={"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "1"},
            **options,
        ),
    )


@asynccontextmanager
async def running(folder, log_folder, rollout=None):
    engine = open_vllm(
        rollout or settings(),
        folder,
        max_model_len=WINDOW,
        dtype="float32",
        device="cpu",
        log_folder=log_folder,
    )
    try:
        yield engine
    finally:
        await engine.close()


def weights(model):
    return ModuleWeights(model)


@torch.no_grad()
def logprobs_by(model, prompt, completion):
    """Of the sampled tokens, from one plain forward pass over everything."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logp = model(ids).logits[0].float().log_softmax(-1)
    start = len(prompt) - 1
    return [logp[start + i, token].item() for i, token in enumerate(completion.token_ids)]


def run(body, timeout=800):
    async def bounded():
        return await asyncio.wait_for(body, timeout)

    return asyncio.run(bounded())
