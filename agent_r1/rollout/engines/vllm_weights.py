"""Weights in a file that every replica reads: the sending side of :mod:`.vllm_plugin`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_r1.errors import EngineError
from agent_r1.rollout.engine import WeightSource

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Parcel:
    """Weights ready to be fetched."""

    version: int
    path: Path
    size: int

    @property
    def infos(self) -> Sequence[Mapping[str, Any]]:
        """What vLLM's ``update_weights`` is told."""
        return [{"path": str(self.path)}]


class FileSender:
    """Writes each version once, in memory where there is room, and keeps the current one.

    A replica that comes back is brought up to date from the kept one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._chosen = folder
        self._folder: Path | None = None
        self.current: Parcel | None = None

    def pack(self, source: WeightSource, version: int) -> Parcel:
        """Blocks while it writes. :class:`EngineError` when the disk or memory is full."""
        from safetensors.torch import save_file

        tensors = {n: t.detach().to("cpu").contiguous() for n, t in source.checkpoint()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        path = self._place(size) / f"version-{version}.safetensors"
        try:
            save_file(tensors, path)
        except Exception as error:  # safetensors reports a full disk with a type of its own
            path.unlink(missing_ok=True)
            raise EngineError(f"the weights cannot be written to {path}: {error}") from error
        return Parcel(version, path, size)

    def keep(self, parcel: Parcel) -> None:
        """This one is served from now on; the one before goes."""
        if self.current is not None and self.current.path != parcel.path:
            self.current.path.unlink(missing_ok=True)
        self.current = parcel

    def discard(self, parcel: Parcel) -> None:
        if parcel != self.current:
            parcel.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _place(self, size: int) -> Path:
        if self._folder is None:
            parent = self._chosen
            if parent is None and _MEMORY.is_dir():
                # Two versions exist while one replaces the other.
                parent = _MEMORY if shutil.disk_usage(_MEMORY).free > 2.5 * size else None
            self._folder = Path(tempfile.mkdtemp(prefix="agent-r1-weights-", dir=parent))
        return self._folder
