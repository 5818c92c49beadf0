"""A world in which the right behaviour takes two tool calls, with one token per action::

    model  !                  asks; any other first token ends the episode
    tool   bdbab!bcbdbab      reveals b, again and again, between wrong tokens
    model  b                  the second call names it
    tool   aca!adabacada      reveals the next one
    model  a                  the answer names that one

The tool's text is thirteen times as long as the action that it answers, and cannot be
predicted: after every occurrence of the symbol comes some *wrong* token, just where the
model, when it is its turn, has to repeat the symbol. Whoever trains on the tool's tokens
as if the model had sampled them teaches it to babble like the tool in the very contexts
in which it has to act.
"""

import random

from agent_r1.tool.base import BaseToolEnv, call_context
from agent_r1.types import Reward, Task

PAD, END, PROMPT, LOOK = "_", "$", "?", "!"
SYMBOLS = "abcd"
ALPHABET = (PAD, END, PROMPT, LOOK, *SYMBOLS)
ECHOES = 6
"""Wrong tokens in one answer of the tool, each after an occurrence of the right one."""


class RelayEnv(BaseToolEnv):
    """One trajectory's way to its task's two symbols; made anew for each."""

    def __init__(self, symbols=""):
        self.right = LOOK + symbols
        self.taken = 0

    def for_trajectory(self, task):
        return RelayEnv(task.answer)

    def step(self, raw_response):
        taken, self.taken = self.taken, self.taken + 1
        if raw_response != self.right[taken] or self.taken == len(self.right):
            return "", [], False
        symbol = self.right[self.taken]
        wrong = [token for token in (LOOK, *SYMBOLS) if token != symbol]
        draw = random.Random(call_context.get().seed)
        return "".join(symbol + draw.choice(wrong) for _ in range(ECHOES)) + symbol, [True], True

    async def astep(self, raw_response):
        return self.step(raw_response)  # nothing to wait for, hence no thread


def tasks(split="train", seed=0, count=64):
    draw = random.Random(seed)
    for i in range(count):
        answer = "".join(draw.choice(SYMBOLS) for _ in range(2))
        yield Task(f"{split}-{i}", PROMPT, answer=answer, data_source="relay")


async def progress(trajectory):
    """The share of the three steps that were right. Coroutines are graded in this process."""
    right = LOOK + trajectory.task.answer
    return Reward(sum(a == b for a, b in zip(trajectory.model_text, right, strict=False)) / 3)


def tokenizer():
    """One token per character of ``ALPHABET``."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(ALPHABET)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)


def model(seed=0):
    """A random network of the Qwen3 kind."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(ALPHABET),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=ALPHABET.index(PAD),
        eos_token_id=ALPHABET.index(END),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).float().eval()
