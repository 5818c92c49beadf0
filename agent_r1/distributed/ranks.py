"""The processes of one sharded worker: how they meet, and what they tell each other."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from agent_r1.data.batch import Batch, token_budget_batches
from agent_r1.distributed.shard import reduce_gradients
from agent_r1.errors import ConfigError, RankError

T = TypeVar("T")

_PATIENCE = timedelta(days=365)
"""Longest wait for the next command: sampling takes as long as it takes, and a connection that
breaks ends the wait at once."""

HUNG = 124
"""Exit code of a process that waited for the others too long, that of ``timeout``."""

_GRACE_S = 10.0
"""After which a process that cannot end itself is ended."""

_WRITING = timedelta(hours=1)
"""Longest wait for another rank's files of a checkpoint, which holds no computation up."""

_LOST = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL")
"""What torch's backends say when a peer is gone."""


class Ranks:
    """All processes of a worker; implements :class:`agent_r1.trainer.peers.Peers`.

    Numbers travel over NCCL where there are GPUs and over gloo elsewhere; commands and records
    always over gloo, in a group of their own. ``timeout_s`` is the longest that one collective
    operation may take. ``files`` is the group in which checkpoints are agreed on.
    """

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self.device: torch.device | None = device
        self.rank = dist.get_rank()
        self.count = dist.get_world_size()
        self.device_type = device.type
        self._meshes: dict[int, DeviceMesh] = {}
        timeout = timedelta(seconds=timeout_s)
        self._records: Any = dist.new_group(backend="gloo", timeout=timeout)
        self._commands: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self.files: Any = dist.new_group(backend="gloo", timeout=max(_WRITING, timeout))
        self._imbalances: list[float] = []
        self._in_step = False

    def mesh(self, size: int = -1) -> DeviceMesh:
        """All ranks, in groups of ``size`` neighbours that share a network's shards (-1: one).

        Each group holds a copy of the network, and gradients are averaged over all of them
        (hybrid sharding). Collective. Raises :class:`ConfigError` where groups do not come out
        even.
        """
        size = self.count if size == -1 else size
        if size < 1 or self.count % size:
            raise ConfigError(
                f"fsdp_size={size} makes no equal groups of {self.count} processes; choose a "
                "divisor of their number, or -1 for one group"
            )
        if size not in self._meshes:
            axes = {"replicate": self.count // size, "shard": size}
            if size == self.count:
                del axes["replicate"]
            shape, names = tuple(axes.values()), tuple(axes)
            self._meshes[size] = init_device_mesh(self.device_type, shape, mesh_dim_names=names)
        return self._meshes[size]

    def cut(self, batch: Batch, max_tokens: int) -> Sequence[Tensor]:
        """This rank's micro-batches; empty ones at the end where others have more."""
        shares = batch.split(self.count)
        cuts = [token_budget_batches(batch.lengths, share.tolist(), max_tokens) for share in shares]
        tokens = [int(batch.lengths[share].sum()) for share in shares]
        self._imbalances.append(max(tokens) * self.count / max(1, sum(tokens)) - 1.0)
        own = cuts[self.rank]
        missing = max(map(len, cuts)) - len(own)
        none = torch.zeros(0, dtype=torch.int64, device=batch.lengths.device)
        return own + [none] * missing

    def passes(self, module: nn.Module, batch: Batch, max_tokens: int) -> Iterator[Tensor]:
        """This rank's micro-batches; gradients are exchanged as ``module`` was sharded for."""
        cuts = self.cut(batch, max_tokens)
        for number, rows in enumerate(cuts, start=1):
            reduce_gradients(module, last=number == len(cuts))
            yield rows

    def imbalance(self) -> float | None:
        """Mean since the last call of how much more than the average the fullest rank had."""
        found, self._imbalances = self._imbalances, []
        return sum(found) / len(found) if found else None

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's ``tensor``, in place."""
        dist.all_reduce(tensor)
        return tensor

    def agree(self, fine: bool) -> bool:
        """Whether all of them are fine."""
        flag = torch.tensor([int(fine)])
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._records)
        return bool(flag.item())

    def collect(self, record: T) -> list[T]:
        """Every rank's record, in the order of ranks."""
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, record, group=self._records)
        return found

    def tell(self, command: Any) -> None:
        """Give a command to all other ranks, which wait for it in :meth:`hear`."""
        dist.broadcast_object_list([command], src=0, group=self._commands)

    def hear(self) -> Any:
        """The next command of rank 0, however long it takes; ``None`` when there is none left."""
        box: list[Any] = [None]
        try:
            dist.broadcast_object_list(box, src=0, group=self._commands)
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} stops, because rank 0 is gone") from error
        return box[0]

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """While ranks compute together. Whatever goes wrong here leaves the others waiting.

        Raises :class:`RankError` where that is a lost connection.
        """
        self._in_step = True
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error) for word in _LOST):
                raise
            raise RankError(
                "a process of the trainer was lost (its own output says why); the same command "
                "continues from the newest checkpoint"
            ) from error
        self._in_step = False

    def let_go(self) -> None:
        """Tell the other ranks that all is done, unless they wait in something that failed."""
        if not self._in_step:
            self.tell(None)


@contextmanager
def joined(device_type: str, timeout_s: float) -> Iterator[Ranks]:
    """The process group that the launcher's environment variables describe.

    ``torchrun`` sets them, and so does whoever starts ranks by other means: ``RANK``,
    ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``.
    """
    device = torch.device(device_type)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {os.environ['RANK']} is process {local} of its machine, which has "
                f"{torch.cuda.device_count()} GPUs; start at most that many, or set "
                "trainer.device=cpu"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=1.5 * timeout_s))
    try:
        yield Ranks(device, 1.5 * timeout_s)
    finally:
        if sys.exc_info()[0] is None:  # after an error others may wait for this rank for ever
            dist.destroy_process_group()


@contextmanager
def watched(timeout_s: float, what: str = "a collective operation") -> Iterator[None]:
    """End this process with every thread's stack printed if the body takes longer.

    The other ranks then see a broken connection, and the launcher the exit code ``HUNG``. A
    hang inside of a collective operation holds no Python lock, so a thread finds it; where
    something else holds that lock the interpreter's own watchdog ends the process soon after.
    """

    def end() -> None:
        told = (
            f"rank {os.environ.get('RANK', '0')}: {what} takes longer than "
            f"actor_rollout_ref.nccl_timeout={timeout_s:g} s. Stacks of its threads:\n"
        )
        os.write(2, told.encode())
        faulthandler.dump_traceback(2)
        os._exit(HUNG)

    alarm = threading.Timer(timeout_s, end)
    alarm.daemon = True
    alarm.start()
    faulthandler.dump_traceback_later(timeout_s + _GRACE_S, exit=True)
    try:
        yield
    finally:
        alarm.cancel()
        faulthandler.cancel_dump_traceback_later()


def started_as_rank() -> bool:
    """Whether this process is one of several that were started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
