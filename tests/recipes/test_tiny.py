import pytest

from agent_r1.models.load import check_vocabulary, load_model, load_tokenizer
from agent_r1.recipes import tiny
from agent_r1.rollout.codec import Codec
from agent_r1.types import Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


def test_the_folder_is_an_ordinary_model_of_the_promised_size(folder):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    check_vocabulary(model, tokenizer)
    assert 0.6e6 < sum(p.numel() for p in model.parameters()) < 0.75e6
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert len(tokenizer) <= 512


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = tiny.build_tiny_model(tmp_path, seed=0)
    other = tiny.build_tiny_model(tmp_path / "other", seed=1)
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted(p.name for p in again.iterdir() if p.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert (folder / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_building_leaves_the_random_state_alone(tmp_path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny.build_tiny_model(tmp_path, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_digits_and_tags_are_single_tokens(folder):
    tokenizer = load_tokenizer(folder)
    for tag in tiny.TAGS:
        assert len(tokenizer.encode(tag)) == 1
    ids = tokenizer.encode("print(90210)")
    assert [tokenizer.decode([i]) for i in ids if tokenizer.decode([i]).isdigit()] == list("90210")


@pytest.mark.parametrize("text", ["<code>\nprint(1)\n</code>", "Ünï→😀 \t\n", "<|end|> 12 34"])
def test_any_text_survives_encoding(folder, text):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_only_appends(folder):
    codec = Codec(load_tokenizer(folder))
    codec.check_template()
    ids = codec.render(Task("t", ({"role": "user", "content": "What is 2 times 3?"},)))
    assert codec.decode(ids) == "<|user|>What is 2 times 3?<|assistant|>"
