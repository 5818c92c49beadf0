"""Weights in a file that every replica reads: the sending side of :mod:`.vllm_plugin`.

Where only adapters are trained, the base is written once and each version is A and B alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_r1.errors import EngineError
from agent_r1.rollout.engine import AdapterSource, WeightSource

if TYPE_CHECKING:
    from torch import Tensor

    from agent_r1.models.lora import Adapter

_MEMORY = Path("/dev/shm")
_PREFIX = "agent-r1-weights-"
_LOCK = "in-use"
_BASE = "base"
_TYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


@dataclass(frozen=True, slots=True)
class Parcel:
    """Weights ready to be fetched."""

    version: int
    path: Path
    size: int
    """Bytes that were written for it."""
    base: Path | None = None
    """What the adapters in ``path`` are added to; None: ``path`` has whole weights."""

    @property
    def infos(self) -> Sequence[Mapping[str, Any]]:
        """What vLLM's ``update_weights`` is told."""
        return [{"path": str(self.path), "base": None if self.base is None else str(self.base)}]


FOLDER_VARIABLE = "AGENT_R1_WEIGHTS_FOLDER"
"""Where weights are written in place of memory: a folder that servers of other machines see."""


class FileSender:
    """Writes each version once, in memory where there is room, and keeps the current one.

    A replica that comes back is brought up to date from the kept one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        told = os.environ.get(FOLDER_VARIABLE)
        self._chosen = Path(told) if folder is None and told else folder
        self._folder: Path | None = None
        self._lock: int | None = None
        """Held while the folder is in use; the kernel lets go of it however this process ends."""
        self._base: Path | None = None
        self._spare: Path | None = None
        """A file that nobody reads any more, to be written over."""
        self.current: Parcel | None = None

    def pack(self, source: WeightSource, version: int) -> Parcel:
        """Blocks while it writes. :class:`EngineError` when the disk or memory is full."""
        adapters = source.adapters() if isinstance(source, AdapterSource) else {}
        if not adapters:
            path, size = self._write(f"version-{version}", source.checkpoint(), {})
            return Parcel(version, path, size)
        size = 0
        if self._base is None:
            assert isinstance(source, AdapterSource)
            self._base, size = self._write(_BASE, source.base(), {})
        scales = json.dumps({name: adapter.scale for name, adapter in adapters.items()})
        path, more = self._write(f"version-{version}", _halves(adapters), {"scales": scales})
        return Parcel(version, path, size + more, self._base)

    def keep(self, parcel: Parcel) -> None:
        """This one is served from now on; the one before goes."""
        if self.current is not None and self.current.path != parcel.path:
            self._retire(self.current)
        self.current = parcel

    def discard(self, parcel: Parcel) -> None:
        if parcel != self.current:
            self._retire(parcel)

    def _retire(self, parcel: Parcel) -> None:
        if self._spare is not None:
            self._spare.unlink(missing_ok=True)
        self._spare = parcel.path.rename(parcel.path.with_name("spare"))

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(
        self, name: str, weights: Iterable[tuple[str, Tensor]], metadata: dict[str, str]
    ) -> tuple[Path, int]:
        """Where the file is, and the bytes of its tensors."""
        tensors = {n: t.detach().to("cpu").contiguous() for n, t in weights}
        size = sum(tensor.nbytes for tensor in tensors.values())
        first = self._folder is None
        path = self._place(size) / f"{name}.safetensors"
        try:
            if self._spare is not None and name != _BASE:
                self._spare.replace(path)
                self._spare = None
            write_safetensors(path, tensors, metadata)
            if first and name != _BASE:
                with contextlib.suppress(OSError):  # then the next version takes a little longer
                    self._spare = _reserved(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise EngineError(f"the weights cannot be written to {path}: {error}") from error
        return path, size

    def _place(self, size: int) -> Path:
        if self._folder is None:
            parent = self._chosen
            if parent is None and _MEMORY.is_dir():
                # Two versions exist while one replaces the other.
                remove_abandoned(_MEMORY)
                parent = _MEMORY if shutil.disk_usage(_MEMORY).free > 2.5 * size else None
            self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._folder


def _reserved(path: Path) -> Path:
    """A file as large as ``path`` whose pages are there: the next version is only copied."""
    spare = path.with_name("spare")
    left, zeros = path.stat().st_size, bytes(1 << 20)
    with spare.open("wb") as file:
        while left > 0:
            left -= file.write(zeros[:left])
    return spare


def remove_abandoned(parent: Path) -> None:
    """Remove the weights of processes that were killed: nobody holds their folders' locks."""
    for path in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(lock)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """The file format of safetensors, over what is there: no page has to be found anew.

    The library's own function copies every tensor once more and writes new files only.
    Tensors are contiguous and on the CPU. Raises :class:`OSError`.
    """
    import torch

    offset = 0
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, tensor in tensors.items():
        entry = {"dtype": _TYPES[str(tensor.dtype)], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.truncate()


def _halves(adapters: Mapping[str, Adapter]) -> Iterable[tuple[str, Tensor]]:
    for name, adapter in adapters.items():
        yield f"{name}.a", adapter.a
        yield f"{name}.b", adapter.b
