"""A real tokenizer that needs no file and no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""An append-only chat template in the format of Qwen and SmolLM."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    extra_tokens: Sequence[str] = (), *, chat_template: str | None = CHATML, **kwargs: Any
) -> Any:
    """A ``transformers.PreTrainedTokenizerFast`` with one token per byte.

    Ids 0 to 255 are the bytes, then come ``<|endoftext|>`` (padding), ``<|im_start|>``
    and ``<|im_end|>`` (end of sequence), then ``extra_tokens``: ordinary tokens of
    several characters, such as ``"</code>"``, or ``"e>."`` to let a stop string end in
    the middle of a token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: i for i, character in enumerate(_byte_characters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.add_tokens([AddedToken(token, normalized=False) for token in extra_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[2],
        additional_special_tokens=[SPECIAL_TOKENS[1]],
        chat_template=chat_template,
        model_max_length=1 << 30,
        clean_up_tokenization_spaces=False,
        **kwargs,
    )


def word_tokenizer(
    words: Sequence[str], control: Sequence[str], *, pad: str, end: str, chat_template: str
) -> Any:
    """A tokenizer with one token for each of ``words``, its place in them; nothing else is text.

    ``control`` are those of them that are control tokens, ``pad`` and ``end`` among them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    backend.decoder = decoders.Fuse()
    for word in words:
        backend.add_tokens([AddedToken(word, normalized=False, special=word in control)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=end,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the code
    points from 256 on, in order.
    """
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in own else next(spare)) for byte in range(256)]
