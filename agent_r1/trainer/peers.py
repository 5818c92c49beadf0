"""What a worker asks of the processes that compute the same update beside it.

Every rank holds the whole batch, cuts it by the same rule and computes its own rows, so
that neither the cut nor the number of passes needs a word between them. What is exchanged:
gradients (by the sharded model itself), log-probabilities of the others' rows, sums for the
logs, and whether everyone's numbers are finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from agent_r1.data.batch import Batch

T = TypeVar("T")


class Peers(Protocol):
    """The ranks of a worker. Each method is called by all of them, in the same order."""

    @property
    def count(self) -> int:
        """How many there are, this one included."""

    @property
    def device(self) -> torch.device | None:
        """Where this rank computes. ``None``: where its weights are."""

    def cut(self, batch: Batch, max_tokens: int) -> Sequence[Tensor]:
        """Rows of this rank's micro-batches; as many on every rank, some may have no row."""

    def passes(self, module: nn.Module, batch: Batch, max_tokens: int) -> Iterator[Tensor]:
        """The same for one gradient of ``module``, which is complete after the last of them."""

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's ``tensor``."""

    def agree(self, fine: bool) -> bool:
        """Whether all of them are fine."""

    def collect(self, record: T) -> list[T]:
        """Every rank's record, in the order of ranks."""


class Alone:
    """One process that has no peers."""

    count = 1
    device: torch.device | None = None

    def cut(self, batch: Batch, max_tokens: int) -> Sequence[Tensor]:
        """All rows, within the budget."""
        return batch.micro_batches(max_tokens)

    def passes(self, module: nn.Module, batch: Batch, max_tokens: int) -> Iterator[Tensor]:
        """The same."""
        return iter(self.cut(batch, max_tokens))

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def agree(self, fine: bool) -> bool:
        """What this process says."""
        return fine

    def collect(self, record: T) -> list[T]:
        """The record itself."""
        return [record]


ALONE = Alone()
