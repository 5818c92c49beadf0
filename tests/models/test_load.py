import json
import shutil

import pytest
import torch

from agent_r1.errors import CheckpointError, ModelError
from agent_r1.models.convert import convert_gguf
from agent_r1.models.load import (
    check_vocabulary,
    enable_packing,
    load_model,
    load_tokenizer,
    save_model,
)
from agent_r1.models.logprobs import token_logprobs
from agent_r1.models.value import load_value_model
from agent_r1.testing import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tiny_model(), byte_tokenizer(), tmp_path_factory.mktemp("m") / "model")


@pytest.fixture
def copied(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_saved_model_comes_back_the_same(folder):
    model, original = load_model(folder), tiny_model()
    for (name, one), (_, other) in zip(
        model.named_parameters(), original.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    assert not model.training
    assert "agent_r1" not in (folder / "config.json").read_text()
    tokenizer = load_tokenizer(folder)
    assert tokenizer("héllo")["input_ids"] == byte_tokenizer()("héllo")["input_ids"]
    check_vocabulary(model, tokenizer)


def test_dtype_and_attention_are_chosen_by_name(folder):
    model = load_model(folder, "bfloat16", attn="sdpa")
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ModelError, match="unknown dtype 'float8'"):
        load_model(folder, "float8")


def test_saving_over_a_model_replaces_it_whole(copied):
    (copied / "stale.txt").write_text("from before")
    save_model(tiny_model(seed=5), byte_tokenizer(), copied)
    assert not (copied / "stale.txt").exists()
    assert torch.equal(
        load_model(copied).get_input_embeddings().weight,
        tiny_model(seed=5).get_input_embeddings().weight,
    )
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(copied):
    class DiskFull:
        def save_pretrained(self, folder):
            (folder / "half.safetensors").write_bytes(b"0" * 100)
            raise OSError(28, "No space left on device")

    before = (copied / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="free some disk space"):
        save_model(DiskFull(), None, copied)
    assert (copied / "model.safetensors").read_bytes() == before
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "no weights"),
    ],
)
def test_an_incomplete_model_folder_names_what_is_missing(copied, lost, message):
    (copied / lost).unlink()
    with pytest.raises(ModelError, match=message):
        load_model(copied)


def test_a_folder_without_a_tokenizer_says_so(copied):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(copied)


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_name(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ModelError, match="is a file"):
        load_model(file)


def test_torn_weights_are_a_model_error(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot load"):
        load_model(copied)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(ModelError, match="only 259 embeddings"):
        check_vocabulary(tiny_model(259), byte_tokenizer(extra_tokens=("<code>", "</code>")))


def test_an_unknown_architecture_is_a_model_error(copied):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "mystery", "architectures": ["MysteryForCausalLM"]}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        load_model(copied)


def test_layers_that_carry_state_across_rows_are_refused():
    model = tiny_model()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ModelError, match="linear_attention, which cannot be packed"):
        enable_packing(model)


def test_a_window_that_attention_is_not_told_of_is_refused():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = tiny_model().config.to_dict() | {
        "use_sliding_window": True,
        "sliding_window": 100,
        "layer_types": ["sliding_attention", "sliding_attention"],
    }
    model = Qwen3ForCausalLM(Qwen3Config(**config)).eval()
    enable_packing(model)
    model.base_model.layers[1].self_attn.sliding_window = None
    with pytest.raises(ModelError, match="2 sliding-window layers but 1 of them"):
        enable_packing(model)


def test_a_model_that_scales_its_logits_in_an_unknown_way_is_refused():
    model = tiny_model()
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: 3.0 * out)
    with pytest.raises(ModelError, match="gives other log-probabilities when rows are packed"):
        enable_packing(model)


def test_a_value_model_starts_at_zero_and_aligns_with_log_probabilities(folder):
    critic = load_value_model(folder)
    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 6])
    assert critic.values(ids, lengths).tokens.abs().max() == 0
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    values = critic.values(ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        states = critic.trunk(input_ids=ids[row : row + 1, :length]).last_hidden_state
        scores = critic.head(states)[0, :, 0]
        torch.testing.assert_close(values.tokens[row, 1:length], scores[:-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(values.final[row], scores[-1], rtol=0, atol=1e-6)
        assert values.tokens[row, 0] == 0 and values.tokens[row, length:].abs().sum() == 0


def test_a_value_model_and_a_policy_of_one_folder_share_nothing(folder):
    policy, critic = load_model(folder), load_value_model(folder)
    ids, lengths = torch.ones(1, 4, dtype=torch.int64), torch.tensor([4])
    before = token_logprobs(policy, ids, lengths).logprobs.detach().clone()
    with torch.no_grad():
        critic.get_input_embeddings().weight.zero_()
    assert torch.equal(token_logprobs(policy, ids, lengths).logprobs, before)


def test_what_is_no_gguf_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        convert_gguf(tmp_path / "nowhere.gguf", tmp_path / "out")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF, but torn")
    with pytest.raises(ModelError, match=r"torn\.gguf"):
        convert_gguf(tmp_path / "torn.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["/no/such/model", "./nothing", "nothing"])
def test_a_tokenizer_of_a_folder_that_is_not_there_is_no_question_to_the_hub(path):
    with pytest.raises(ModelError, match="does not exist; check the path"):
        load_tokenizer(path)
