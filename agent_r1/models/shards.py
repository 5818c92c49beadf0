"""Reading weights that are spread over files: by layer, or by the ranks of a training run."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from agent_r1.errors import ModelError

_RANK_FILE = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_WRAPPERS = re.compile(r"_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.|_orig_mod\.")


class Weights(Protocol):
    """Named tensors, read one at a time."""

    @property
    def names(self) -> Iterable[str]: ...

    def read(self, name: str) -> Tensor: ...


class FolderWeights:
    """The weights of a Hugging Face folder, whatever files they are in.

    Raises :class:`ModelError` where the index and the files disagree.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: tuple[str, Any] | None = None
        index = next(iter(sorted(folder.glob("*.index.json"))), None)
        self._file_of = self._read_index(index) if index else self._list_files()

    @property
    def names(self) -> Iterable[str]:
        return self._file_of

    def read(self, name: str) -> Tensor:
        file = self._file_of[name]
        if self._open is None or self._open[0] != file:
            self._open = (file, _open_file(self._folder / file))
        tensor: Tensor = self._open[1](name)
        return tensor

    def _read_index(self, index: Path) -> dict[str, str]:
        try:
            found = {str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is no index of weights: {error!r}; copy it again") from error
        files = sorted(set(found.values()))
        lost = [file for file in files if not (self._folder / file).is_file()]
        if lost:
            raise ModelError(
                f"{self._folder} lacks {len(lost)} of the {len(files)} files that {index.name} "
                f"lists ({', '.join(lost[:3])}); finish the download or the copy"
            )
        for file in files:
            missing = {n for n, f in found.items() if f == file} - set(
                _names_in(self._folder / file)
            )
            if missing:
                raise ModelError(
                    f"{self._folder / file} lacks {sorted(missing)[0]}, which {index.name} says is "
                    "there; take index and files from the same save"
                )
        return found

    def _list_files(self) -> dict[str, str]:
        files = sorted(self._folder.glob("*.safetensors"))
        files = files or sorted(self._folder.glob("pytorch_model*.bin"))
        return {name: file.name for file in files for name in _names_in(file)}


def _names_in(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return list(opened.keys())
        return list(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); copy it again") from error


def _open_file(file: Path) -> Callable[[str], Tensor]:
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, "pt")
        read: Callable[[str], Tensor] = opened.__enter__().get_tensor
        return read
    loaded: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return loaded.__getitem__


# --- shards of ranks -------------------------------------------------------------------


class Merged:
    """Tensors put together when they are asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    @property
    def names(self) -> Iterable[str]:
        return self._makers

    def read(self, name: str) -> Tensor:
        return self._makers[name]()


def find_rank_files(folder: Path) -> dict[tuple[int, int], Path]:
    """(world size, rank) → file, for the rank files of an FSDP run."""
    found = ((_RANK_FILE.fullmatch(file.name), file) for file in folder.glob("model_world_size_*"))
    return {(int(m[1]), int(m[2])): file for m, file in found if m}


def read_ranks(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> Weights:
    """The weights that the rank files of ``folder`` hold together, named as in ``expected``."""
    files = find_rank_files(folder)
    worlds = sorted({world for world, _ in files})
    if len(worlds) != 1:
        raise ModelError(
            f"{folder} holds files of runs on {' and '.join(map(str, worlds))} ranks; keep those "
            "of one"
        )
    (world,) = worlds
    missing = [rank for rank in range(world) if (world, rank) not in files]
    if missing:
        raise ModelError(
            f"{folder} lacks rank {', '.join(map(str, missing))} of {world} "
            f"(model_world_size_{world}_rank_{missing[0]}.pt); copy it from the node that wrote it"
        )
    ranks = [_load_rank(files[world, rank]) for rank in range(world)]
    original = match_names(ranks[0], expected, folder)
    makers = {
        name: _maker(name, [rank[key] for rank in ranks], expected[name])
        for name, key in original.items()
    }
    return Merged(makers)


def _load_rank(file: Path) -> dict[str, Any]:
    """A rank's tensors; nothing but tensors and their placement is unpickled."""
    from torch.distributed._mesh_layout import _MeshLayout
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    kinds: list[Any] = [DeviceMesh, DTensor, DTensorSpec, Partial, Replicate, Shard, TensorMeta]
    kinds.append(_MeshLayout)
    try:
        with torch.serialization.safe_globals(kinds):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError) as error:
        raise ModelError(
            f"{file} cannot be read as a rank's tensors: {first_line(error)}; it is damaged, or "
            "of a kind that is not merged here (save it as DTensors or with "
            "torch.distributed.checkpoint)"
        ) from error
    return {_WRAPPERS.sub("", key): value for key, value in loaded.items()}


def _maker(name: str, parts: Sequence[Any], shape: tuple[int, ...]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        try:
            whole = _join(parts, shape)
        except (RuntimeError, IndexError) as error:
            raise ModelError(f"the shards of {name} do not fit together: {error}") from error
        if tuple(whole.shape) != shape:
            raise ModelError(
                f"{name} has shape {tuple(whole.shape)} when its shards are joined, and {shape} in "
                "the model's configuration; give the configuration that was trained with --base"
            )
        return whole

    return make


def _join(parts: Sequence[Any], shape: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import DTensor

    first = parts[0]
    if isinstance(first, DTensor):
        mesh: Tensor = first.device_mesh.mesh
        locals_ = [part._local_tensor for part in parts]
        return _assemble(mesh.tolist(), first.placements, locals_)
    if tuple(first.shape) == shape:  # every rank holds the whole
        return torch.as_tensor(first)
    return torch.cat([part for part in parts if part.numel()])


def _assemble(mesh: Any, placements: Sequence[Any], parts: Sequence[Tensor]) -> Tensor:
    """Undo one axis of the mesh after the other, the innermost first."""
    from torch.distributed.tensor import Replicate, Shard

    if isinstance(mesh, int):
        return parts[mesh]
    placement = placements[0]
    if isinstance(placement, Replicate):
        return _assemble(mesh[0], placements[1:], parts)
    if type(placement) is not Shard:
        raise ModelError(
            f"tensors placed as {placement} are not merged here; save the model with "
            "torch.distributed.checkpoint, or its full state dict"
        )
    pieces = [_assemble(each, placements[1:], parts) for each in mesh]
    return torch.cat([p for p in pieces if p.numel()] or pieces[:1], dim=placement.dim)


def match_names(
    found: Iterable[str], expected: Mapping[str, tuple[int, ...]], folder: Path
) -> dict[str, str]:
    """Expected name → key in the checkpoint, which may have a prefix such as ``model.``."""
    keys = set(found)
    first = next(iter(expected))
    prefixes = sorted((k.removesuffix(first) for k in keys if k.endswith(first)), key=len)
    for prefix in prefixes:
        if all(prefix + name in keys for name in expected):
            return {name: prefix + name for name in expected}
    prefix = prefixes[0] if prefixes else ""
    lost = sorted(name for name in expected if prefix + name not in keys)
    strange = sorted(keys - {prefix + name for name in expected})
    raise ModelError(
        f"{folder} lacks {len(lost)} of the model's {len(expected)} tensors ({lost[0]}, …) and "
        f"holds others ({', '.join(strange[:2]) or 'none'}); give the configuration that was "
        "trained with --base, and merge adapters before"
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
