"""Policies as plain Hugging Face folders, from whatever they were saved as.

Three kinds of sources are read: model folders (one file or many), the rank files of an
FSDP run (``model_world_size_4_rank_0.pt`` …, as verl writes them) and folders of
``torch.distributed.checkpoint``. A sharded source holds no architecture: its configuration
and tokenizer come from a ``huggingface/`` folder beside it or from ``base``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor

from agent_r1.errors import CheckpointError, ConfigError, ModelError
from agent_r1.models.dcp import read_adapters, read_dcp
from agent_r1.models.folder import check_folder
from agent_r1.models.load import flush_folder, torch_dtype
from agent_r1.models.lora import ADAPTER_FILE, Adapter, described_scale
from agent_r1.models.shards import FolderWeights, Weights, find_rank_files, read_ranks

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".distcp")
HF_FOLDER = "huggingface"
_LEFT = (".metadata", ADAPTER_FILE)


def export_model(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    base: Path | None = None,
) -> Path:
    """Write ``source`` to ``target``, complete or not at all.

    Weights keep their values bit for bit unless ``dtype`` converts them, and make one file
    unless ``max_shard_size`` (as ``5GB``) bounds it. Raises :class:`ModelError` for a source
    that is incomplete, :class:`ConfigError` where ``target`` is taken and
    :class:`CheckpointError` where the disk does not take it.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; name a folder that does not")
    limit = _bytes(max_shard_size)
    wanted = None if dtype is None else torch_dtype(dtype)
    weights, base = _open(source, base)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _copy_rest(base, work)
        _set_dtype(work, _write(weights, work, wanted, limit))
        flush_folder(work)
        work.chmod(0o755)
        work.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written ({error}); free some disk space and try again"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _open(source: Path, base: Path | None) -> tuple[Weights, Path]:
    """The weights of a source, and the folder with everything else."""
    if not source.is_dir():
        raise ModelError(f"{source} is no folder; give the folder of a model or a checkpoint")
    is_dcp = (source / ".metadata").is_file()
    if not is_dcp and not find_rank_files(source):
        check_folder(source)
        return FolderWeights(source), base or source
    if is_dcp and (described := _adapted_by(source)) is not None:
        return _with_adapters(source, described, base), described
    base = base or _base_of(source)
    expected = _expected(base)
    return (read_dcp if is_dcp else read_ranks)(source, expected), base


class _Adapted:
    """The weights of a base with the adapters of a checkpoint added."""

    def __init__(self, base: Weights, adapters: Mapping[str, Adapter], dtype: torch.dtype) -> None:
        self._base = base
        self._adapters = adapters
        self._dtype = dtype

    @property
    def names(self) -> Iterable[str]:
        return self._base.names

    def read(self, name: str) -> Tensor:
        weight = self._base.read(name)
        if weight.is_floating_point():
            weight = weight.to(self._dtype)
        adapter = self._adapters.get(name)
        return weight if adapter is None else adapter.merged(weight)


def _adapted_by(source: Path) -> Path | None:
    """The folder that describes the adapters of a checkpoint of this project."""
    folder = source.parent / HF_FOLDER
    return folder if (folder / ADAPTER_FILE).is_file() else None


def _with_adapters(source: Path, described: Path, base: Path | None) -> Weights:
    """Merged as training has them, in the type of the policy; ``base`` instead of the own."""
    scale, trained = described_scale(described)
    folder = base or Path(trained)
    if not (base or trained) or not folder.is_dir():
        raise ModelError(
            f"{source} holds adapters of {trained or 'a model'} that is no folder here; name the "
            "model that they were trained on with --base FOLDER"
        )
    check_folder(folder)
    dtype = torch_dtype(json.loads((described / "config.json").read_text()).get("dtype", "float32"))
    weights = FolderWeights(folder)
    adapters = read_adapters(source, scale)
    lost = sorted(adapters.keys() - set(weights.names))
    if lost:
        raise ModelError(
            f"{folder} has no {lost[0]}, which {source} has an adapter of; give its base"
        )
    return _Adapted(weights, adapters, dtype)


def _base_of(source: Path) -> Path:
    for folder in (source / HF_FOLDER, source.parent / HF_FOLDER, source):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        f"{source} is a sharded checkpoint without a model configuration: there is no {HF_FOLDER}/ "
        "folder with a config.json beside it; name the model that was trained with --base FOLDER"
    )


def _expected(base: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters and kept buffers, without building one.

    Of tied parameters only the first is there: the others are it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{base} describes no model that transformers knows: {error}") from error
    model.tie_weights()
    unique = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - unique
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied
    }


def _bytes(size: str | None) -> int | None:
    if size is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError as error:
        raise ModelError(f"--max-shard-size {size!r} is no size; write it as 5GB") from error


# --- writing -----------------------------------------------------------------------------


def _copy_rest(base: Path, work: Path) -> None:
    """Configuration, tokenizer, chat template, code: whatever is not a weight."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name not in _LEFT:
            shutil.copy2(file, work / file.name)


def _write(
    weights: Weights, work: Path, dtype: torch.dtype | None, limit: int | None
) -> set[torch.dtype]:
    """One safetensors file, or several with an index; returns the floating types in them."""
    from safetensors.torch import save_file

    index: dict[str, int] = {}
    total = files = 0
    types: set[torch.dtype] = set()
    for shard in _shards(weights, dtype, limit):
        files += 1
        save_file(shard, work / f"shard-{files}", metadata={"format": "pt"})
        index |= dict.fromkeys(shard, files)
        total += sum(tensor.nbytes for tensor in shard.values())
        types |= {tensor.dtype for tensor in shard.values() if tensor.is_floating_point()}
    if files == 1:
        (work / "shard-1").rename(work / "model.safetensors")
        return types
    names = {n: f"model-{n:05}-of-{files:05}.safetensors" for n in range(1, files + 1)}
    for number, name in names.items():
        (work / f"shard-{number}").rename(work / name)
    content: dict[str, Any] = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[number] for name, number in sorted(index.items())},
    }
    (work / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
    return types


def _shards(
    weights: Weights, dtype: torch.dtype | None, limit: int | None
) -> Iterator[dict[str, Tensor]]:
    """The weights in the order of their names, at most ``limit`` bytes at a time."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name in sorted(weights.names):
        tensor = weights.read(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if shard and limit is not None and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        # A clone, because safetensors takes no two tensors of one storage.
        shard[name] = tensor.contiguous().clone()
        size += tensor.nbytes
    yield shard


def _set_dtype(work: Path, types: set[torch.dtype]) -> None:
    """Have the configuration name the type of the weights, which loading goes by."""
    file = work / "config.json"
    if len(types) != 1 or not file.is_file():
        return
    config = json.loads(file.read_text())
    name = str(next(iter(types))).removeprefix("torch.")
    if (config.get("dtype") or config.get("torch_dtype") or "float32") != name:
        config.pop("torch_dtype", None)
        file.write_text(json.dumps(config | {"dtype": name}, indent=2) + "\n")
