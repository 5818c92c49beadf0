"""Tiny random models, a byte-level tokenizer and a multi-turn driver for engine tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.types import Completion, SamplingParams

VOCABULARY = 320
END = "<|end|>"
MERGES = ["</", "</c", "od", "ode", "e>", "ode>", "de>", "x<", "</code", "é", " é"]
T = TypeVar("T")

_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "qwen2": (Qwen2Config, {}),
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"sliding_window": 12, "head_dim": 16}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 16, "sliding_window": 8}),
}
FAMILIES = sorted(_CONFIGS)


def tiny_model(family: str = "qwen3", seed: int = 0, **overrides: Any) -> Any:
    """A random model of two layers whose distributions are peaked enough to be told apart."""
    from transformers import AutoModelForCausalLM

    config_class, extra = _CONFIGS[family]
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **extra,
        **overrides,
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_class(**options)).eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level vocabulary with a few merged tokens that cut across ``</code>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merged = [encode.pre_tokenize_str(text)[0][0] for text in MERGES]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *merged])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = encode
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def engine(model: Any = None, **options: Any) -> EmbeddedEngine:
    """An engine with small limits and no end tokens unless asked for."""
    settings: dict[str, Any] = {"max_model_len": 256, "max_slots": 8, "eos_ids": (), **options}
    return EmbeddedEngine(model or tiny_model(), byte_tokenizer(), **settings)


def run(make: Callable[[], Coroutine[Any, Any, T]], timeout: float = 60.0) -> T:
    """Run a coroutine to its end; a hang is a failure."""

    async def bounded() -> T:
        return await asyncio.wait_for(make(), timeout)

    return asyncio.run(bounded())


def using(built: EmbeddedEngine, body: Callable[[EmbeddedEngine], Awaitable[T]]) -> T:
    """Run ``body(engine)`` and close the engine whatever happens."""

    async def guarded() -> T:
        try:
            return await body(built)
        finally:
            await built.close()

    return run(guarded)


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class Episode:
    """The turns of one driven sequence: where each completion began, and the completion."""

    tokens: tuple[int, ...]
    starts: tuple[int, ...]
    completions: tuple[Completion, ...]


async def episode(
    built: EmbeddedEngine,
    name: str,
    first: Sequence[int],
    *,
    turns: int = 3,
    seed: int = 0,
    new_tokens: int = 9,
    delay: Callable[[], float] = lambda: 0.0,
    **params: Any,
) -> Episode:
    """Drive turns with tool text in between, then release."""
    tokens = list(first)
    starts: list[int] = []
    completions: list[Completion] = []
    try:
        for turn in range(turns):
            sampling = SamplingParams(new_tokens + turn, seed=seed * 100 + turn, **params)
            completion = await built.generate(tokens, sampling, name)
            starts.append(len(tokens))
            completions.append(completion)
            tokens += completion.token_ids
            if turn + 1 < turns:
                await asyncio.sleep(delay())
                tokens += prompt(seed + turn, 3 + (seed + turn) % 5)
        if delay():
            await asyncio.sleep(delay())
    finally:
        built.release(name)
    return Episode(tuple(tokens), tuple(starts), tuple(completions))


@torch.no_grad()
def reference_logprobs(model: Any, done: Episode, temperature: float = 1.0) -> list[list[float]]:
    """Log-probabilities of the sampled tokens from one plain forward over everything."""
    logits = model(torch.tensor([done.tokens])).logits[0].float() / temperature
    logp = logits.log_softmax(-1)
    return [
        [
            logp[start + offset - 1, token].item()
            for offset, token in enumerate(completion.token_ids)
        ]
        for start, completion in zip(done.starts, done.completions, strict=True)
    ]
