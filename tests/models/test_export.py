"""Sharded checkpoints become the very model that was sharded."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from agent_r1.errors import ConfigError, ModelError
from agent_r1.models.export import export_model
from agent_r1.models.load import load_model, load_tokenizer, save_model
from agent_r1.models.shards import _assemble
from agent_r1.testing import byte_tokenizer, tiny_model

WRITER = Path(__file__).with_name("write_shards.py")
ROWS = 265  # an odd number: the shards of two ranks are of different sizes


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def whole(request, tmp_path_factory):
    """A model folder, with its weights as they should come out."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    model = tiny_model(ROWS, tie_word_embeddings=request.param)
    return save_model(model, byte_tokenizer(), folder)


@pytest.fixture(scope="module")
def sharded(whole, tmp_path_factory):
    """``fsdp/`` and ``dcp/``, each with ``huggingface/`` inside or beside it."""
    out = tmp_path_factory.mktemp("sharded")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    writers = [
        subprocess.Popen(
            [sys.executable, WRITER, str(rank), str(out / "store"), str(whole), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [writer.communicate(timeout=240)[1] for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert [writer.returncode for writer in writers] == [0, 0], errors
    for inside in (out / "fsdp" / "huggingface", out / "huggingface"):
        shutil.copytree(whole, inside, ignore=shutil.ignore_patterns("*.safetensors"))
    return out


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


def assert_same(exported, whole, dtype=torch.float32):
    one, other = load_model(exported, dtype), load_model(whole, dtype)
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in other.named_parameters()]
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    text = "one tokenizer"
    assert load_tokenizer(exported)(text).input_ids == load_tokenizer(whole)(text).input_ids
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["fsdp", "dcp"])
def test_ranks_are_joined_bit_for_bit(sharded, whole, kind, tmp_path):
    exported = export_model(sharded / kind, tmp_path / "out")
    assert_same(exported, whole)
    assert not (exported / "huggingface").exists()
    assert (exported / "config.json").read_text() == (whole / "config.json").read_text()


def test_a_folder_in_many_files_becomes_one_and_back(whole, tmp_path):
    many = export_model(whole, tmp_path / "many", max_shard_size="40KB")
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 2 and (many / "model.safetensors.index.json").is_file()
    largest = max(t.nbytes for t in load_model(whole).parameters())
    assert all(file.stat().st_size < max(largest, 40_000) + 5_000 for file in files)
    assert_same(many, whole)
    one = export_model(many, tmp_path / "one")
    assert [file.name for file in one.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same(one, whole)


def test_files_of_older_models_are_read(whole, tmp_path):
    old = copy_of(whole, tmp_path)
    state = load_model(whole, attn="sdpa").state_dict()
    (old / "model.safetensors").unlink()
    names = sorted(state)
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, members in halves.items():
        torch.save({name: state[name].clone() for name in members}, old / file)
    index = {name: file for file, members in halves.items() for name in members}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    exported = export_model(old, tmp_path / "out")
    assert_same(exported, whole)
    assert not list(exported.glob("*.bin*"))


def test_weights_are_converted_and_the_configuration_says_so(sharded, whole, tmp_path):
    exported = export_model(sharded / "fsdp", tmp_path / "out", dtype="bfloat16")
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    size = (exported / "model.safetensors").stat().st_size
    assert size < 0.6 * sum(t.nbytes for t in load_model(whole).parameters()) + 10_000
    assert_same(exported, whole, torch.bfloat16)


def test_a_mesh_of_several_axes_is_undone_from_the_inside():
    tensor = torch.arange(24).view(6, 4)
    rows = list(tensor.chunk(2))
    quarters = [piece for row in rows for piece in row.chunk(2, dim=1)]
    both = _assemble([[0, 1], [2, 3]], [Shard(0), Shard(1)], quarters)
    hybrid = _assemble([[0, 1], [2, 3]], [Replicate(), Shard(0)], [*rows, *rows])
    assert torch.equal(both, tensor) and torch.equal(hybrid, tensor)


# --- what can be wrong -----------------------------------------------------------------


def test_a_missing_rank_is_named(sharded, tmp_path):
    half = copy_of(sharded / "fsdp", tmp_path)
    (half / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(ModelError, match=r"lacks rank 1 of 2 \(model_world_size_2_rank_1\.pt\)"):
        export_model(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_pieces_of_a_distributed_checkpoint(sharded, whole, tmp_path):
    half = copy_of(sharded / "dcp", tmp_path)
    next(half.glob("__1_*.distcp")).unlink()
    with pytest.raises(ModelError, match=r"\.distcp files"):
        export_model(half, tmp_path / "out", base=whole)


def test_another_architecture_is_refused(sharded, whole, tmp_path):
    for kind in ("fsdp", "dcp"):
        wide = save_model(tiny_model(ROWS, hidden_size=64), byte_tokenizer(), tmp_path / kind)
        with pytest.raises(ModelError, match=r"has shape .*--base"):
            export_model(sharded / kind, tmp_path / "out", base=wide)
        deep = save_model(tiny_model(ROWS, layers=3), byte_tokenizer(), tmp_path / f"{kind}-deep")
        with pytest.raises(ModelError, match=r"lacks .* tensors .*--base"):
            export_model(sharded / kind, tmp_path / "out", base=deep)
    assert not (tmp_path / "out").exists()


def test_without_a_configuration_there_is_no_model(sharded, tmp_path):
    alone = copy_of(sharded / "dcp", tmp_path)
    with pytest.raises(ModelError, match="--base FOLDER"):
        export_model(alone, tmp_path / "out")


def test_a_target_that_is_there_stays(whole, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export_model(whole, tmp_path / "out")


def test_a_lost_file_of_many_is_named(whole, tmp_path):
    many = export_model(whole, tmp_path / "many", max_shard_size="40KB")
    lost = sorted(many.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of .*{lost.name}"):
        export_model(many, tmp_path / "out")


def test_programs_in_a_checkpoint_are_not_run(sharded, tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    for kind, name in (("fsdp", "model_world_size_2_rank_0.pt"), ("dcp", ".metadata")):
        hostile = copy_of(sharded / kind, tmp_path)
        if kind == "fsdp":
            torch.save({"a": Program()}, hostile / name)
        else:
            (hostile / name).write_bytes(pickle.dumps(Program()))
        with pytest.raises(ModelError):
            export_model(hostile, tmp_path / "out", base=sharded / "huggingface")
    assert not (tmp_path / "harm").exists()


def test_a_size_is_written_with_its_unit(whole, tmp_path):
    with pytest.raises(ModelError, match="5GB"):
        export_model(whole, tmp_path / "out", max_shard_size="many")
