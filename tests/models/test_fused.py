"""Fused elementwise parts compute what the single operations do."""

import copy

import pytest
import torch

from agent_r1.models.fused import fuse_elementwise, rotate, silu_product
from agent_r1.models.load import enable_packing
from agent_r1.models.logprobs import token_logprobs
from agent_r1.models.lora import add_lora
from agent_r1.models.recompute import recompute_elementwise
from agent_r1.testing.models import tiny_model

IDS = (torch.arange(48).view(2, 24) * 11 + 5) % 250
LENGTHS = torch.tensor([24, 17])


def as_it_is(function):
    return function


def fused(model, **options):
    made = copy.deepcopy(model)
    return made, fuse_elementwise(made, compile_=as_it_is, **options)


def gradients(model):
    result = token_logprobs(model, IDS, LENGTHS, with_entropy=True)
    (result.logprobs.sum() + result.entropy.sum()).backward()
    return result.logprobs.detach(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_values_and_gradients_are_those_of_single_operations(lean, lora):
    plain = tiny_model()
    enable_packing(plain)
    quick, count = fused(plain)
    assert count == plain.config.num_hidden_layers * (4 + 1 + 1) + 1
    if lean:
        assert recompute_elementwise(quick) == plain.config.num_hidden_layers  # norms store little
    if lora:
        for model in (plain, quick):
            torch.manual_seed(0)
            add_lora(model, rank=2, alpha=4)
    expected, wanted = gradients(plain)
    found, got = gradients(quick)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    for name, gradient in wanted.items():
        if gradient is not None:
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_other_families_of_the_kind_are_the_same(family):
    import transformers

    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
    config = getattr(transformers, f"{names[family]}Config")(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **({"sliding_window": 6} if family == "mistral" else {}),
    )
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(config).eval()
    enable_packing(plain)
    quick, count = fused(plain)
    assert count == 2 * (2 + 1 + 1) + 1
    torch.testing.assert_close(gradients(quick)[0], gradients(plain)[0], rtol=0, atol=2e-6)


def test_an_ordinary_call_with_a_cache_is_the_models_own():
    plain = tiny_model()
    enable_packing(plain)
    quick, _ = fused(plain)
    ids = IDS[:1, :8]
    for model in (plain, quick):
        model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(quick.generate(ids, **options), plain.generate(ids, **options))


def test_a_norm_of_another_kind_is_left_alone():
    class OffsetRMSNorm(torch.nn.Module):  # Gemma's: the weight is an offset to one
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((8,), 0.5))
            self.eps = 1e-6

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (8,), 1 + self.weight, self.eps)

    assert fuse_elementwise(torch.nn.ModuleList([OffsetRMSNorm()]), compile_=as_it_is) == 0


def test_rotation_by_hand():
    """One head of two coordinates, turned by a quarter: (x, y) -> (-y, x)."""
    query = torch.tensor([[[[3.0, 4.0]]]])
    cos, sin = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    turned, key = rotate(query, 2 * query, cos, sin)
    assert turned.tolist() == [[[[-4.0, 3.0]]]]
    assert key.tolist() == [[[[-8.0, 6.0]]]]


def test_product_by_hand():
    assert silu_product(torch.zeros(1), torch.ones(1)).item() == 0.0
    gate = torch.tensor([1.0])
    assert silu_product(gate, torch.tensor([2.0])).item() == pytest.approx(
        2 / (1 + 2.718281828**-1)
    )
