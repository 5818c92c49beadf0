"""Low-rank adapters: the function they compute, what is trained, what is written."""

import json

import pytest
import torch

from agent_r1.errors import ModelError
from agent_r1.models.load import enable_packing, load_model, save_model
from agent_r1.models.logprobs import token_logprobs
from agent_r1.models.lora import add_lora, has_lora, lora_layers, merged_state, without_lora
from agent_r1.testing import byte_tokenizer, tiny_model

IDS = torch.randint(250, (2, 9), generator=torch.Generator().manual_seed(3))
LENGTHS = torch.tensor([9, 6])


def adapted(rank=4, alpha=8.0, targets=("all-linear",), noise=0.3):
    model = tiny_model(tie_word_embeddings=False)
    enable_packing(model)
    torch.manual_seed(1)
    add_lora(model, rank=rank, alpha=alpha, targets=targets)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_(std=noise)
    return model


def logprobs(model):
    return token_logprobs(model, IDS, LENGTHS).logprobs


def test_a_layer_computes_base_plus_scaled_product():
    model = adapted(targets=("q_proj",))
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.base_layer.weight.T + (8 / 4) * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected)


def test_adapters_start_as_the_base_model():
    plain = tiny_model()
    enable_packing(plain)
    before = logprobs(plain)
    add_lora(plain, rank=2, alpha=4)
    assert torch.equal(logprobs(plain), before)


def test_only_adapters_are_trained_and_the_output_layer_has_none():
    model = adapted()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert len(lora_layers(model)) == 7 * len(model.model.layers)
    assert not any("lm_head" in name for name, _ in lora_layers(model))


def test_without_adapters_is_the_base_and_what_is_trained_stays_so():
    base = tiny_model(tie_word_embeddings=False)
    enable_packing(base)
    model = adapted()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    with without_lora(model):
        assert torch.equal(logprobs(model), logprobs(base))
    assert (logprobs(model) - logprobs(base)).abs().max() > 1e-3
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained


def test_a_merged_folder_loads_as_a_plain_model_with_the_same_function(tmp_path):
    model = adapted()
    save_model(model, byte_tokenizer(), tmp_path / "out")
    merged = load_model(tmp_path / "out")
    assert not has_lora(merged)
    assert set(merged_state(model)) == set(tiny_model(tie_word_embeddings=False).state_dict())
    torch.testing.assert_close(logprobs(merged), logprobs(model), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_adapter_folder_is_what_peft_reads(tmp_path):
    from peft import PeftModel

    model = adapted()
    save_model(model, None, tmp_path / "out")
    base = tiny_model(tie_word_embeddings=False)
    enable_packing(base)
    expected = logprobs(model)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    torch.testing.assert_close(logprobs(loaded.base_model.model), expected)
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8.0


def test_an_unknown_target_names_those_that_exist():
    with pytest.raises(ModelError, match=r"nonsense.*q_proj.*down_proj"):
        add_lora(tiny_model(), rank=2, alpha=4, targets=("nonsense",))
