"""Packed log-probabilities against the model's own forward pass, row by row."""

import copy
import functools

import pytest
import torch

from agent_r1.errors import ModelError
from agent_r1.models.load import enable_packing
from agent_r1.models.logprobs import token_logprobs
from agent_r1.testing import tiny_model

LENGTHS = torch.tensor([40, 33, 0, 40, 17, 1, 25])


def packed(model):
    enable_packing(model)
    return model


@functools.cache
def shared_model():
    return packed(spread(tiny_model()))


def spread(model):
    """Weights large enough that every token changes what follows it visibly."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return model


def rows(width=40, vocabulary=97):
    """Random rows of which some share a prefix, as siblings share a prompt."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(LENGTHS), width), generator=generator)
    ids[3, :20] = ids[0, :20]
    ids[4, :10] = ids[0, :10]
    ids[6, :25] = ids[3, :25]
    return ids


def one_by_one(model, ids, lengths, temperature=1.0):
    """The definition: each row alone through the model's own forward, all logits at once."""
    dtype = next(model.parameters()).dtype
    logprobs, entropy = torch.zeros(ids.shape, dtype=dtype), torch.zeros(ids.shape, dtype=dtype)
    for row, length in enumerate(lengths.tolist()):
        if length > 1:
            logits = model(input_ids=ids[row : row + 1, :length], use_cache=False).logits[0, :-1]
            log_p = (logits / temperature).log_softmax(-1)
            targets = ids[row, 1:length, None]
            logprobs[row, 1:length] = log_p.gather(1, targets).squeeze(1)
            entropy[row, 1:length] = -(log_p.exp() * log_p).sum(-1)
    return logprobs, entropy


def family(name):
    import transformers

    size = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    configs = {
        "llama": transformers.LlamaConfig(**size),
        "llama-tied": transformers.LlamaConfig(**size, tie_word_embeddings=True),
        "qwen2": transformers.Qwen2Config(**size),
        "qwen2-window": transformers.Qwen2Config(
            **size, use_sliding_window=True, sliding_window=7, max_window_layers=1
        ),
        "qwen3": transformers.Qwen3Config(**size, head_dim=8),
        "qwen3-moe": transformers.Qwen3MoeConfig(
            **size, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ),
        "mistral-window": transformers.MistralConfig(**size, sliding_window=7),
        "gemma2-softcap": transformers.Gemma2Config(**size, head_dim=8, sliding_window=7),
        "gemma3-window": transformers.Gemma3TextConfig(**size, head_dim=8, sliding_window=7),
        "granite-scaled": transformers.GraniteConfig(**size, logits_scaling=3.0),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(
            configs[name], attn_implementation="eager"
        ).eval()


FAMILIES = [
    "llama",
    "llama-tied",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-moe",
    "mistral-window",
    "gemma2-softcap",
    "gemma3-window",
    "granite-scaled",
]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_packed_log_probabilities_are_those_of_the_models_own_forward(name):
    model = spread(family(name))
    expected, entropy = one_by_one(model, rows(), LENGTHS, 0.7)
    packed(model)
    for share in (True, False):
        result = token_logprobs(
            model, rows(), LENGTHS, 0.7, with_entropy=True, share_prefixes=share
        )
        assert (result.logprobs - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
        assert (result.entropy - entropy).abs().max() < 1e-5 * max(1, entropy.abs().max())
    assert expected.std() > 0.1  # the test could fail


@torch.no_grad()
def test_what_lies_beyond_the_length_changes_nothing():
    ids = rows()
    before = token_logprobs(shared_model(), ids, LENGTHS).logprobs
    for row, length in enumerate(LENGTHS.tolist()):
        ids[row, length:] = 1 + row
    assert torch.equal(token_logprobs(shared_model(), ids, LENGTHS).logprobs, before)


@torch.no_grad()
def test_other_rows_of_the_batch_change_nothing():
    ids = rows()
    together = token_logprobs(shared_model(), ids, LENGTHS).logprobs
    order = torch.tensor([6, 2, 0, 4, 5, 1, 3])
    shuffled = token_logprobs(shared_model(), ids[order], LENGTHS[order]).logprobs
    assert (shuffled - together[order]).abs().max() < 1e-5
    for row, length in enumerate(LENGTHS.tolist()):
        alone = token_logprobs(shared_model(), ids[row : row + 1], LENGTHS[row : row + 1]).logprobs
        torch.testing.assert_close(alone[0, :length], together[row, :length], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_token_depends_on_all_before_it_and_on_nothing_after_it():
    ids, lengths = rows()[:1], LENGTHS[:1]
    before = token_logprobs(shared_model(), ids, lengths).logprobs[0]
    ids[0, 12] = (ids[0, 12] + 1) % 97
    change = (token_logprobs(shared_model(), ids, lengths).logprobs[0] - before).abs()
    assert change[:12].max() == 0
    assert change[12:].min() > 0


@torch.no_grad()
def test_a_mask_picks_positions_and_leaves_them_as_they_are():
    mask = torch.rand(rows().shape, generator=torch.Generator().manual_seed(2)) < 0.3
    everything = token_logprobs(shared_model(), rows(), LENGTHS, with_entropy=True)
    masked = token_logprobs(shared_model(), rows(), LENGTHS, mask=mask, with_entropy=True)
    for ours, whole in (
        (masked.logprobs, everything.logprobs),
        (masked.entropy, everything.entropy),
    ):
        assert (ours - whole * mask).abs().max() < 1e-5
        assert ours[~mask].abs().max() == 0


def test_an_empty_mask_gives_zeros_and_a_zero_gradient():
    model = packed(tiny_model())
    result = token_logprobs(model, rows(), LENGTHS, mask=torch.zeros_like(rows(), dtype=torch.bool))
    result.logprobs.sum().backward()
    assert result.logprobs.abs().max() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_those_of_the_models_own_forward(share, tied):
    model = packed(tiny_model(tie_word_embeddings=tied).double())
    weight = torch.rand(rows().shape, generator=torch.Generator().manual_seed(3)).double()

    def gradients(pair):
        loss = (pair[0] * weight).sum() + 0.3 * (pair[1] * weight).sum()
        return torch.autograd.grad(loss, list(model.parameters()))

    result = token_logprobs(model, rows(), LENGTHS, 0.8, with_entropy=True, share_prefixes=share)
    ours = gradients((result.logprobs, result.entropy))
    theirs = gradients(one_by_one(model, rows(), LENGTHS, 0.8))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_gradient_checkpointing_changes_no_gradient():
    from agent_r1.models.load import enable_gradient_checkpointing

    model = packed(tiny_model().double())
    again = copy.deepcopy(model)
    enable_gradient_checkpointing(again)
    again.train()
    for module in (model, again):
        token_logprobs(module, rows(), LENGTHS).logprobs.sum().backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_shared_prefixes_are_computed_once():
    from agent_r1.models.packing import pack

    assert pack(rows(), LENGTHS).token_ids.shape[1] == LENGTHS.sum() - 20 - 10 - 25
    assert pack(rows(), LENGTHS, share_prefixes=False).token_ids.shape[1] == LENGTHS.sum()


def test_a_model_with_ordinary_attention_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match="enable_packing"):
        token_logprobs(tiny_model(), rows(), LENGTHS)


@torch.no_grad()
def test_a_packed_model_still_answers_ordinary_calls():
    model = tiny_model()
    ids = rows()[:2]
    mask = torch.ones_like(ids)
    mask[1, :9] = 0  # left padding, as generation has it
    expected = model(input_ids=ids, attention_mask=mask).logits
    again = packed(model)(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(again[0], expected[0])
    assert torch.equal(again[1, 9:], expected[1, 9:])
    grown = model.generate(ids[:1], max_new_tokens=4, do_sample=False)
    assert grown.shape == (1, 44)


def test_the_padding_token_is_a_token_like_any_other():
    """torch drops the gradient of an embedding's padding row; here padding has no id."""
    model = packed(tiny_model(tie_word_embeddings=False))
    pad = model.config.pad_token_id
    ids = torch.tensor([[5, pad, 6, 7]])
    token_logprobs(model, ids, torch.tensor([4])).logprobs.sum().backward()
    assert model.get_input_embeddings().weight.grad[pad].abs().max() > 0
