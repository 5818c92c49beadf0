"""The order in which tasks are trained on: shuffled, reproducible, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

from agent_r1.errors import CheckpointError, DataError
from agent_r1.types import Task


class Loader(Protocol):
    """Endless batches of tasks whose position can be saved."""

    tasks: tuple[Task, ...]

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one pass."""

    def __next__(self) -> list[Task]:
        """The next batch."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Go to a saved position."""


class TaskLoader:
    """Endless batches of tasks, epoch after epoch.

    The order of an epoch is a function of ``seed`` and the epoch's number alone, on every
    machine and version of Python, so the position is all the state there is. Each epoch
    uses a task at most once, and no batch spans two epochs: with ``drop_last`` (for
    training) the tasks that do not fill a batch sit out this epoch (:attr:`left_over` of
    them, others in the next when shuffled), without it the last batch is smaller.

    Raises:
        DataError: there are fewer tasks than one batch needs.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"a batch needs at least one task, not {batch_size}")
        if not tasks or (drop_last and len(tasks) < batch_size):
            raise DataError(
                f"{len(tasks)} tasks do not fill a batch of {batch_size}; add data or lower "
                "data.train_batch_size"
            )
        self.tasks = tuple(tasks)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        """Of the batch that comes next."""
        self.batch = 0
        """Number within its epoch of the batch that comes next."""
        self._order = self._order_of(0)

    @property
    def batches_per_epoch(self) -> int:
        full, rest = divmod(len(self.tasks), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def left_over(self) -> int:
        """Tasks that each epoch leaves out."""
        return len(self.tasks) % self.batch_size if self.drop_last else 0

    def __iter__(self) -> Iterator[list[Task]]:
        return self

    def __next__(self) -> list[Task]:
        start = self.batch * self.batch_size
        chosen = [self.tasks[i] for i in self._order[start : start + self.batch_size]]
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self._go_to(self.epoch + 1, 0)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "batch": self.batch, "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Continue from a saved position.

        Raises:
            CheckpointError: the position belongs to other tasks, another order or batch size.
        """
        require_same_data(self._identity(), state["of"])
        self._go_to(int(state["epoch"]), int(state["batch"]))
        return self

    def _identity(self) -> dict[str, Any]:
        return {
            **identity_of(self.tasks),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def _go_to(self, epoch: int, batch: int) -> None:
        if epoch != self.epoch:
            self._order = self._order_of(epoch)
        self.epoch, self.batch = epoch, batch

    def _order_of(self, epoch: int) -> list[int]:
        return order_of(self.seed, epoch, len(self.tasks), shuffle=self.shuffle)


def order_of(seed: object, epoch: int, count: int, *, shuffle: bool) -> list[int]:
    """The indices of ``count`` tasks in the order of one pass."""
    order = list(range(count))
    if shuffle:
        order.sort(key=lambda i: _key(seed, epoch, i))
    return order


def identity_of(tasks: Sequence[Task]) -> dict[str, Any]:
    """What tells these tasks from others: how many they are, and a digest of their ids."""
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        digest.update(f"{len(task.id)}:{task.id}".encode())
    return {"tasks": len(tasks), "ids": digest.hexdigest()}


def require_same_data(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` where a saved position is one in other data."""
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    if differing:
        raise CheckpointError(
            "the data is not what the checkpoint was trained on: "
            + ", ".join(f"{key} was {theirs.get(key)}, is {mine[key]}" for key in differing)
            + ". Restore it, or start a new run from the checkpoint's weights"
        )


def _key(seed: object, epoch: int, index: int) -> bytes:
    """A random sort key that no library version can change."""
    return hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()
