"""The flash attention path and the update on a GPU, against the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agent_r1.models.load import enable_packing, prepare_training, visiting
from agent_r1.models.logprobs import token_logprobs
from agent_r1.testing import tiny_model

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def rows():
    ids = torch.randint(256, (6, 300), generator=torch.Generator().manual_seed(0))
    ids[1:4, :100] = ids[0, :100]
    return ids, torch.tensor([300, 250, 180, 300, 0, 77])


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("share", [True, False])
def test_flash_attention_over_ragged_rows_agrees_with_the_cpu(window, share):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = tiny_model(heads=2, kv_heads=1, hidden_size=128).config.to_dict()
    if window:
        config |= {"use_sliding_window": True, "sliding_window": window, "layer_types": None}
        config["max_window_layers"] = 0
    model = Qwen3ForCausalLM(Qwen3Config(**config)).eval()
    enable_packing(model)
    ids, lengths = rows()

    def run(module, device):
        module = module.to(device)
        module.zero_grad()
        result = token_logprobs(
            module, ids.to(device), lengths.to(device), with_entropy=True, share_prefixes=share
        )
        (result.logprobs.sum() + result.entropy.sum()).backward()
        gradient = module.get_input_embeddings().weight.grad
        return result.logprobs.detach().cpu(), gradient.float().cpu().clone()

    exact, gradient = run(model, "cpu")
    single, single_gradient = run(model, "cuda")
    assert (single - exact).abs().max() < 1e-4
    assert (single_gradient - gradient).abs().max() < 1e-3 * gradient.abs().max()
    half, half_gradient = run(model.bfloat16(), "cuda")
    assert (half - exact).abs().mean() < 0.02
    cosine = torch.nn.functional.cosine_similarity(
        half_gradient.flatten(), gradient.flatten(), dim=0
    )
    assert cosine > 0.99


@pytest.mark.parametrize("checkpointing", [True, False])
def test_fused_parts_give_the_gradient_of_single_operations(checkpointing):
    ids, lengths = rows()

    def run(prepare):
        model = tiny_model(heads=2, kv_heads=1, hidden_size=128).cuda().bfloat16()
        enable_packing(model)
        if prepare:
            prepare_training(model, gradient_checkpointing=checkpointing)
        model.train(checkpointing)
        result = token_logprobs(model, ids.cuda(), lengths.cuda(), with_entropy=True)
        (result.logprobs.sum() + result.entropy.sum()).backward()
        flat = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        return result.logprobs.detach(), flat

    expected, gradient = run(False)
    found, fused = run(True)
    assert (found - expected).abs().mean() < 0.02
    assert torch.nn.functional.cosine_similarity(fused, gradient, dim=0) > 0.99


def test_a_reference_visits_the_gpu_and_is_at_home_afterwards():
    model = tiny_model()
    enable_packing(model)
    ids, lengths = rows()
    expected = token_logprobs(model, ids, lengths).logprobs
    homes = [p.data_ptr() for p in model.parameters()]
    with visiting(model, torch.device("cuda")), torch.no_grad():
        found = token_logprobs(model, ids.cuda(), lengths.cuda()).logprobs
        assert all(p.is_cuda for p in model.parameters())
    assert [p.data_ptr() for p in model.parameters()] == homes
    assert (found.cpu() - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_the_update_of_a_4b_model_reaches_its_share_of_the_matmul_ceiling(tmp_path):
    output = tmp_path / "result.json"
    script = ROOT / "benchmarks" / "train_step.py"
    arguments = ["--device", "cuda", "--shape", "qwen3-4b", "--workload", "groups"]
    subprocess.run([sys.executable, script, *arguments, "--output", output], check=True)
    share = json.loads(output.read_text())["results"][0]["share_of_ceiling"]
    assert 0.45 <= share < 1.0
