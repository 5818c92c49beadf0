"""What a policy update saw of each token, stored for readers of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent_r1.data.batch import Batch
from agent_r1.monitor.tokens import TokenRecords
from agent_r1.trainer.credit import Credit
from agent_r1.trainer.peers import Peers
from agent_r1.types import Trajectory


@dataclass(slots=True)
class Seen:
    """On the CPU, in the order of the batch. A row that was not seen is False in its mask."""

    logprobs: Tensor  # [B, T] of the policy before the update
    has_logprobs: Tensor  # [B] bool
    entropies: Tensor  # [B, T] at the first pass over the row
    has_entropies: Tensor  # [B] bool

    @staticmethod
    def nothing(batch: Batch) -> Seen:
        """To be filled by one update of this batch."""
        shape, rows = batch.token_ids.shape, len(batch)
        no = torch.zeros(rows, dtype=torch.bool)
        return Seen(torch.zeros(shape), no, torch.zeros(shape), no.clone())

    def know(self, logprobs: Tensor) -> None:
        """Those of every row, computed before the first step."""
        self.logprobs = logprobs.detach().float().cpu()
        self.has_logprobs = torch.ones_like(self.has_logprobs)

    def note(
        self, index: Tensor, logprobs: Tensor, entropy: Tensor | None, *, before_steps: bool
    ) -> None:
        """What a pass over the rows ``index`` computed; ``before_steps``: by unchanged weights."""
        width = logprobs.shape[1]
        if before_steps:
            self.logprobs[index, :width] = logprobs.detach().float().cpu()
            self.has_logprobs[index] = True
        new = ~self.has_entropies[index]
        if entropy is not None and bool(new.any()):
            self.entropies[index[new], :width] = entropy.detach().float().cpu()[new]
            self.has_entropies[index] = True

    def merged(self, peers: Peers, device: torch.device) -> Seen:
        """Of the rows of all ranks, each of which was seen by one."""
        if peers.count == 1:
            return self
        own = [self.logprobs * self.has_logprobs[:, None], self.has_logprobs.float()]
        own += [self.entropies * self.has_entropies[:, None], self.has_entropies.float()]
        logprobs, told, entropies, visited = (peers.add(t.to(device)).cpu() for t in own)
        # What every rank knew was added up as often.
        share = told.clamp(min=1)[:, None]
        return Seen(logprobs / share, told > 0, entropies, visited > 0)


def token_records(
    trajectories: Sequence[Trajectory],
    batch: Batch,
    worth: Credit,
    trainer: Tensor | None,
    seen: Seen | None,
) -> TokenRecords:
    """Those of the batch that was laid out from ``trajectories``.

    ``trainer`` ``[B, T]``: its log-probabilities before the update, where they were computed
    for the credit.
    """
    unknown = torch.full(batch.token_ids.shape, torch.nan)
    trained = worth.batch.loss_mask.cpu()
    entropies, logprobs = unknown, unknown
    if seen is not None:
        entropies = torch.where(trained & seen.has_entropies[:, None], seen.entropies, unknown)
        logprobs = torch.where(trained & seen.has_logprobs[:, None], seen.logprobs, unknown)
    if trainer is not None:
        logprobs = trainer.detach().float().cpu()
    wide = {
        "advantages": torch.where(trained, worth.advantages.detach().float().cpu(), unknown),
        "differences": batch.behavior_logprobs.cpu() - logprobs,
        "entropies": entropies,
    }
    wrote = batch.loss_mask.cpu()
    return TokenRecords(
        ids=[trajectory.id for trajectory in trajectories],
        counts=[sum(len(t.completion.token_ids) for t in one.turns) for one in trajectories],
        **{name: tensor[wrote].numpy() for name, tensor in wide.items()},
    )
