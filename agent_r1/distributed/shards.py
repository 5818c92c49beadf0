"""The sharded part of a checkpoint, by ``torch.distributed.checkpoint``.

Every rank writes what it holds, in a thread of its own while training goes on, and reads what
it is to hold, whatever number of ranks wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from agent_r1.errors import CheckpointError, ModelError
from agent_r1.models.dcp import described_tensors, require_tensors


class ShardWriter:
    """Writes shards of one checkpoint after the other. ``group`` is of gloo and its own:
    ranks tell each other over it, from a thread, what they have written.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._under_way: Any = None

    def begin(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Copy the tensors, and write the copies from now on. Collective."""
        with suppress(CheckpointError):  # rank 0 has told of it
            self.wait()
        writer = FileSystemWriter(folder)
        self._under_way = async_save(
            dict(tensors), storage_writer=writer, process_group=self._group
        )

    def wait(self) -> None:
        """Until every rank's files are on the disk; :class:`CheckpointError` if one's are not."""
        future: Future[Any] | None = self._under_way
        self._under_way = None
        if future is None:
            return
        try:
            future.result()
        except CheckpointException as error:
            raise CheckpointError(_of_ranks(error)) from error
        except (OSError, RuntimeError) as error:
            raise CheckpointError(str(error)) from error


def read_shards(tensors: Mapping[str, Tensor], folder: Path, group: Any) -> None:
    """Fill each rank's tensors in place with their part of what is stored. Collective.

    Raises :class:`CheckpointError` where something is missing or damaged.
    """
    try:
        require_tensors(tensors, described_tensors(folder), folder)
        load(dict(tensors), storage_reader=FileSystemReader(folder), process_group=group)
    except CheckpointException as error:
        raise CheckpointError(f"cannot read {folder}: {_of_ranks(error)}") from error
    except (OSError, RuntimeError, ModelError) as error:
        raise CheckpointError(f"cannot read {folder}: {error}") from error


def _of_ranks(error: CheckpointException) -> str:
    """What went wrong on which rank, in a line."""
    failures = sorted(error.failures.items())
    told = [f"rank {rank}: {' '.join(str(failure[0]).split())}" for rank, failure in failures]
    return "; ".join(told[:3])
