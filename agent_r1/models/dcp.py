"""Checkpoints of ``torch.distributed.checkpoint``, read by one process.

Torch itself unpickles whatever such a folder holds. Here its description is first read by an
unpickler that knows nothing but descriptions, and only entries that are tensors are asked for.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from agent_r1.errors import ModelError
from agent_r1.models.lora import ADAPTER, Adapter
from agent_r1.models.shards import Merged, Weights, first_line, match_names

_DCP_MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
)
_DCP_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "dict"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "tuple"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
}


class _OnlyMetadata(pickle.Unpickler):
    """Unpickles what such a checkpoint's ``.metadata`` consists of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "pathlib._local":  # where Python 3.13 keeps the classes of pathlib
            module = "pathlib"
        # Types of torch are looked up as torch.float32 and the like.
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in _DCP_MODULES or (module, name) in _DCP_NAMES or is_dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_dcp(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> Weights:
    """The model's tensors of a distributed checkpoint; an optimizer's stay unread."""
    shapes = {key: tuple(described.size) for key, described in described_tensors(folder).items()}
    original = match_names(shapes, expected, folder)
    for name, key in original.items():
        if shapes[key] != expected[name]:
            raise ModelError(
                f"{name} has shape {shapes[key]} in {folder} and {expected[name]} in the model's "
                "configuration; give the configuration that was trained with --base"
            )
    state = read_tensors(folder, original.values())
    return Merged({name: lambda key=key: state[key] for name, key in original.items()})  # type: ignore[misc]


_HALVES: Final = ("lora_A", "lora_B")
_LORA: Final = re.compile(rf"actor\.module\.(.+)\.lora_A\.{ADAPTER}\.weight")


def read_adapters(folder: Path, scale: float) -> dict[str, Adapter]:
    """The adapters of a distributed checkpoint, by the names of the weights of their base."""
    found = {m[1]: m[0] for m in map(_LORA.fullmatch, described_tensors(folder)) if m}
    keys = [key.replace("lora_A", matrix) for key in found.values() for matrix in _HALVES]
    tensors = read_tensors(folder, keys)
    return {
        f"{name}.weight": Adapter(tensors[key], tensors[key.replace(*_HALVES)], scale)
        for name, key in found.items()
    }


def read_tensors(folder: Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """Whole tensors of a distributed checkpoint, in the machine's memory.

    Raises :class:`ModelError` where one is missing or the folder is damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    described, wanted = described_tensors(folder), list(keys)
    require_tensors(wanted, described, folder)
    state: dict[str, Any] = {
        key: torch.empty(tuple(described[key].size), dtype=described[key].properties.dtype)
        for key in wanted
    }
    try:
        with warnings.catch_warnings():  # torch remarks that one process reads
            warnings.simplefilter("ignore", UserWarning)
            load(state, checkpoint_id=folder, no_dist=True)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise ModelError(
            f"{folder} cannot be read: {first_line(error)}; are all of its .distcp files there?"
        ) from error
    return state


def require_tensors(keys: Iterable[str], described: Mapping[str, Any], folder: Path) -> None:
    """Raise :class:`ModelError` unless all of them are tensors of the checkpoint.

    Torch would unpickle an entry of another kind, whatever it is.
    """
    lost = [key for key in keys if key not in described]
    if lost:
        raise ModelError(
            f"{folder} lacks {len(lost)} tensors that belong to it ({lost[0]}, …); take the "
            "whole folder of one checkpoint"
        )


def described_tensors(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of each of its tensors: torch's ``TensorStorageMetadata``."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        with (folder / ".metadata").open("rb") as file:
            described = _OnlyMetadata(file).load().state_dict_metadata
    except (pickle.UnpicklingError, EOFError, AttributeError, OSError) as error:
        raise ModelError(
            f"{folder}/.metadata is not that of a distributed checkpoint: {error}"
        ) from error
    return {k: d for k, d in described.items() if isinstance(d, TensorStorageMetadata)}


# --- trees whose tensors are kept there --------------------------------------------------

_KEPT: Final = "kept as shards under"


def kept_as(key: str) -> dict[str, str]:
    """What stands in a state file for a tensor that the shards hold under ``key``."""
    return {_KEPT: key}


def kept_key(value: Any) -> str | None:
    """The key of a tensor that the shards hold; ``None`` for every other value."""
    return value[_KEPT] if isinstance(value, Mapping) and value.keys() == {_KEPT} else None


def kept_keys(tree: Any) -> set[str]:
    """The keys of all tensors of a tree that the shards hold."""
    if (key := kept_key(tree)) is not None:
        return {key}
    inner = tree.values() if isinstance(tree, Mapping) else tree
    if not isinstance(tree, Mapping | list | tuple):
        return set()
    return {key for value in inner for key in kept_keys(value)}


def filled(tree: Any, folder: Path) -> Any:
    """The tree with the whole tensors that the shards in ``folder`` hold; else as it is."""
    keys = kept_keys(tree)
    return _put(tree, read_tensors(folder, sorted(keys))) if keys else tree


def _put(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if (key := kept_key(tree)) is not None:
        return tensors[key]
    if isinstance(tree, Mapping):
        return {name: _put(value, tensors) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_put(value, tensors) for value in tree)
    return tree
