"""What the training loop sees of the networks, and the rows of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from agent_r1.data.batch import Batch
from agent_r1.models.divergence import TeacherView
from agent_r1.models.packing import sent
from agent_r1.models.value import Values
from agent_r1.models.weights import ModuleWeights
from agent_r1.trainer.checkpoint import Snapshot
from agent_r1.trainer.seen import Seen


class PolicyWorker(Protocol):
    """The networks of a run: policy, and reference and critic where there are any.

    All tensors in and out are padded ``[B, T]`` on the CPU or the worker's device, in the
    order of the batch. Log-probabilities are of the tempered distribution and 0.0 outside
    of the loss mask.
    """

    @property
    def weights(self) -> ModuleWeights:
        """Those of the policy, to be read between updates."""

    def logprobs(self, batch: Batch) -> Tensor: ...

    def ref_logprobs(self, batch: Batch) -> Tensor: ...

    def values(self, batch: Batch) -> Values: ...

    def update_policy(
        self,
        batch: Batch,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        ref_logprobs: Tensor | None = None,
        weights: Tensor | None = None,
        teacher: TeacherView | None = None,
    ) -> dict[str, float]: ...

    @property
    def seen(self) -> Seen | None:
        """What the last policy update saw of each token; None before the first."""

    def update_critic(
        self, batch: Batch, returns: Tensor, old_values: Tensor
    ) -> dict[str, float]: ...

    def export(self, path: Path) -> None:
        """Write the policy and its tokenizer as a model folder."""

    def snapshot(self, draft: Path) -> Snapshot:
        """Everything that an exact continuation needs, as it is now.

        What the state file should not hold is written into the folder ``draft``, and may be
        written while training goes on.
        """

    def restore(self, checkpoint: Path, state: Any) -> None:
        """Continue exactly where the checkpoint's snapshot was taken, by whatever worker.

        ``state`` is the snapshot's, as the state file gives it.
        """

    def export_from(self, checkpoint: Path) -> None:
        """Add the policy's folder to a complete checkpoint of a snapshot with files."""


@dataclass(frozen=True, slots=True)
class Minibatch:
    """Rows of one optimizer step, or some of them. Every ``[B, T]`` is cut alike."""

    batch: Batch
    loss_weights: Tensor  # [B], from the whole mini-batch, so that parts add up to it
    index: Tensor  # [B] which rows of the step's batch these are, on the CPU
    advantages: Tensor | None = None  # [B, T]
    old_logprobs: Tensor | None = None  # [B, T]
    ref_logprobs: Tensor | None = None  # [B, T]
    weights: Tensor | None = None  # [B, T] off-policy correction
    returns: Tensor | None = None  # [B, T]
    old_values: Tensor | None = None  # [B, T]
    teacher: TeacherView | None = None  # of the same rows

    def select(self, rows: Tensor) -> Minibatch:
        """These rows, as wide as the longest of them."""
        batch = self.batch.select(rows)
        changed: dict[str, Any] = {"batch": batch, "loss_weights": self.loss_weights[rows]}
        changed["index"] = self.index[rows.cpu()]
        width = batch.token_ids.shape[1]
        for field in fields(self)[3:]:
            value: Tensor | TeacherView | None = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value[rows, :width]
            elif value is not None:
                changed[field.name] = value.select(rows, width)
        return replace(self, **changed)

    def to(self, device: torch.device) -> Minibatch:
        """The same on another device."""
        weights = sent(self.loss_weights, device)
        changed: dict[str, Any] = {"batch": self.batch.to(device), "loss_weights": weights}
        for field in fields(self)[3:]:
            value: Tensor | TeacherView | None = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = sent(value, device)
            elif value is not None:
                changed[field.name] = value.to(device)
        return replace(self, **changed)
