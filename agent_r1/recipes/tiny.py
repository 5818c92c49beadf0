"""A Qwen3-shaped model of 0.7 million parameters that two CPU cores can train.

The folder it writes is an ordinary Hugging Face model with random weights: config,
safetensors, tokenizer and chat template, so that everything that works on it works on a
real model by changing one path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_r1.recipes import arithmetic

END, PAD, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"
TAGS = ("<code>", "</code>", "<interpreter>", "</interpreter>")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    f"{{{{ '{ASSISTANT}' + message['content'] + '{END}' }}}}"
    "{%- else -%}"
    f"{{{{ '{USER}' + message['content'] }}}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{ '{ASSISTANT}' }}}}{{%- endif -%}}"
)


@dataclass(frozen=True, slots=True)
class TinyShape:
    """The size of the model. The defaults give 0.7 million parameters."""

    vocabulary: int = 512
    """At most; the corpus of the tokenizer decides how many are needed."""
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 384
    context: int = 256
    rope_theta: float = 30.0
    """Small, because contexts are short: positions nearby must differ for copying."""
    init_std: float = 0.04


def build_tiny_model(folder: str | Path, seed: int = 0, shape: TinyShape | None = None) -> Path:
    """Write tokenizer and random weights to ``folder``. The same seed gives the same bytes."""
    import torch
    from transformers import Qwen3ForCausalLM

    from agent_r1.models.load import save_model

    shape = shape or TinyShape()
    tokenizer = build_tokenizer(shape.vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(_model_config(shape, tokenizer))
    return save_model(model, tokenizer, folder)


def _model_config(shape: TinyShape, tokenizer: Any) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        initializer_range=shape.init_std,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def build_tokenizer(vocabulary: int = 512) -> Any:
    """Byte-level BPE with single digits, learned from a fixed set of traces.

    A digit is always a token of its own, because copying a number digit by digit is what
    the model has to learn; each tag is one token, so that a stop string is one too.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [END, PAD, USER, ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.add_tokens(list(TAGS))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus(count: int = 600) -> Iterator[str]:
    """Text to learn merges from, without the tags, which are tokens already."""
    for trace in itertools.islice(arithmetic.traces(seed=0), count):
        text = trace.prompt if isinstance(trace.prompt, str) else trace.prompt[-1]["content"]
        for segment in trace.segments:
            text += segment.text
        for tag in TAGS:
            text = text.replace(tag, "\x00")
        yield from text.split("\x00")
