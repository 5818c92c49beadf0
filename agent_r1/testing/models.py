"""A model small enough for any test, of the very architecture that is trained for real."""

from __future__ import annotations

from typing import Any


def tiny_model(
    vocab_size: int = 264,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tie_word_embeddings: bool = True,
    seed: int = 0,
    experts: int = 0,
) -> Any:
    """A random ``Qwen3ForCausalLM`` in float32, in evaluation mode, equal for equal seeds.

    With ``experts`` it is a ``Qwen3MoeForCausalLM`` in which two of them see each token.

    The default vocabulary holds :func:`agent_r1.testing.byte_tokenizer` with up to five
    extra tokens. The global random state of torch is left as it was.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: dict[str, Any] = {"model_type": "qwen3"}
    if experts:
        kind = {
            "model_type": "qwen3_moe",
            "num_experts": experts,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": hidden_size,
        }
    config = AutoConfig.for_model(
        **kind,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tie_word_embeddings,
        pad_token_id=256,
        eos_token_id=258,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.float().eval()
