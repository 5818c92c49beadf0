"""Tokenizers that spell spaces with a mark and begin every text with one (Llama 2, Gemma)."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AddedToken, PreTrainedTokenizerFast

from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engines.embedded_stop import token_bytes
from agent_r1.trainer.sft_data import encode_trace
from agent_r1.types import Completion, Finish

MARK = "\N{LOWER ONE EIGHTH BLOCK}"
RUN = MARK * 3
TEXTS = ["print", "  two", " one", "\n<interpreter>\n42\n", "a b   c", "é—🙂", RUN, "\t x"]


def tokenizer(*, dummy_prefix):
    letters = [MARK, *"abcdefghijklmnopqrstuvwxyz<>/0123456789"]
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, MARK + "p"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [(MARK, "p")], byte_fallback=True, unk_token="<unk>")
    made = Tokenizer(model)
    spell = normalizers.Replace(" ", MARK)
    ahead = [normalizers.Prepend(MARK)] if dummy_prefix else []
    made.normalizer = normalizers.Sequence([*ahead, spell])
    behind = [decoders.Strip(" ", 1, 0)] if dummy_prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *behind]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([AddedToken(RUN, normalized=False)])
    return fast


@pytest.fixture(scope="module", params=[True, False], ids=["dummy-prefix", "no-prefix"])
def codec(request):
    return Codec(tokenizer(dummy_prefix=request.param))


@pytest.mark.parametrize("text", [text for text in TEXTS if MARK not in text])
def test_text_inside_a_context_is_encoded_as_it_is(codec, text):
    ids = codec.encode_observation(text)
    assert codec.decode(ids) == text
    known = token_bytes(codec.tokenizer, len(codec.tokenizer))
    assert b"".join(known[index] for index in ids) == text.encode()


def test_a_text_cut_in_two_reads_as_before(codec):
    first, second = codec.encode_text("x = 1"), codec.encode_text(" print")
    assert codec.decode(first + second) == "x = 1 print"
    assert codec.decode(second) == " print"


def test_a_prompt_begins_as_the_tokenizer_begins_a_document(codec):
    alone = tuple(codec.tokenizer.encode("print"))
    marked = codec.tokenizer.convert_ids_to_tokens(alone)[0].startswith(MARK)
    assert marked == (codec.encode_text("print") != alone)


def test_an_added_run_of_spaces_is_spaces_to_a_stop_string(codec):
    index = codec.tokenizer.convert_tokens_to_ids(RUN)
    assert token_bytes(codec.tokenizer, len(codec.tokenizer))[index] == b"   "
    assert codec.decode([*codec.encode_text("x"), index]) == "x   "


def test_a_cold_start_trace_is_the_text_that_was_given(codec):
    said = ["<code>\nx\n</code>", "\n<interpreter>\n7\n</interpreter>\n", "so 7"]
    authors = [Author.MODEL, Author.TOOL, Author.MODEL]
    segments = tuple(Segment(a, text) for a, text in zip(authors, said, strict=True))
    example = encode_trace(Trace("q", segments), codec)
    prompt = len(codec.tokenizer.encode("q"))
    assert codec.decode(example.token_ids[prompt:-1]) == "".join(said)
    written = [i for i, own in zip(example.token_ids, example.loss_mask, strict=True) if own]
    assert codec.decode(written[:-1]) == said[0] + said[2]


def test_a_control_token_that_ended_the_turn_is_no_text(codec):
    codec.tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    fresh = Codec(codec.tokenizer)
    end = codec.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = (*fresh.encode_text(" done"), end)
    assert end != codec.tokenizer.eos_token_id
    assert fresh.text_of(Completion(ids, (0.0,) * len(ids), Finish.EOS)) == " done"
