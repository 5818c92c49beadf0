"""What the updates of a step tell the logs. Sums are kept and divided once, at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from agent_r1.algorithms.losses import PolicyLossInputs, PolicyLossTerms
from agent_r1.algorithms.masked import masked_sum
from agent_r1.algorithms.stats import (
    MismatchStats,
    PolicyStats,
    ValueStats,
    mismatch_stats,
    policy_stats,
)
from agent_r1.trainer.peers import Peers
from agent_r1.trainer.trainable import StepResult


class _Steps:
    """Optimizer steps of one update, taken and skipped."""

    def __init__(self) -> None:
        self._results: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """One attempted optimizer step."""
        self._results.append(result)

    def summary(self) -> dict[str, float]:
        """Means over the steps taken. A skipped one is counted and shows nowhere else."""
        taken = [result for result in self._results if not result.skipped]
        summary = {
            "updates": float(len(taken)),
            "skipped_updates": float(len(self._results) - len(taken)),
        }
        if taken:
            summary["grad_norm"] = _mean([result.grad_norm for result in taken])
            summary["lr"] = taken[-1].lr
        return summary

    @property
    def count(self) -> int:
        return len(self._results)


class PolicyTotals(_Steps):
    """Sums over the micro-batches of one policy update."""

    def __init__(self) -> None:
        super().__init__()
        self._stats = PolicyStats()
        self._mismatch = MismatchStats()
        self._pg_loss = self._kl_loss = self._entropy = self._divergence = 0.0
        self._distilled = False

    def observe(
        self,
        inputs: PolicyLossInputs,
        terms: PolicyLossTerms,
        loss_weights: Tensor,
        entropy: Tensor | None,
        kl: Tensor | None,
    ) -> None:
        """One micro-batch. Losses are weighted as in training, entropy is a token mean."""
        mask = inputs.loss_mask
        per_row = loss_weights[:, None].to(terms.loss.dtype)
        self._stats += policy_stats(inputs, terms)
        self._pg_loss += float(masked_sum(terms.loss.detach() * per_row, mask))
        if entropy is not None:
            self._entropy += float(masked_sum(entropy.detach(), mask))
        if kl is not None:
            self._kl_loss += float(masked_sum(kl.detach() * per_row, mask))

    def distil(self, divergence: Tensor, mask: Tensor) -> None:
        """The reverse KL to a teacher on one micro-batch."""
        self._distilled = True
        self._divergence += float(masked_sum(divergence.detach(), mask))

    def compare(self, logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor) -> None:
        """Trainer against engine on one micro-batch, while both still have the same weights."""
        if self.count == 0:
            self._mismatch += mismatch_stats(logprobs, behavior_logprobs, mask)

    def merge(self, peers: Peers) -> None:
        """Add what the other ranks saw; steps are everyone's and stay."""
        sums = (self._pg_loss, self._kl_loss, self._entropy, self._divergence)
        found = peers.collect((self._stats, self._mismatch, sums))
        (self._stats, self._mismatch, _), *others = found
        for stats, mismatch, _ in others:
            self._stats += stats
            self._mismatch += mismatch
        totals = (math.fsum(column) for column in zip(*(sums for *_, sums in found), strict=True))
        self._pg_loss, self._kl_loss, self._entropy, self._divergence = totals

    def metrics(self, kl_coef: float | None) -> dict[str, float]:
        """Named ``actor/…``, and ``training/…`` for the engine's difference to the trainer.

        The difference is that of the first mini-batch: later ones are sampled by weights
        that the update has left behind. ``kl_coef`` None: no KL term in the loss.
        """
        tokens = max(self._stats.tokens, 1.0)
        metrics = self._stats.summary() | self.summary()
        metrics["pg_loss"] = self._pg_loss / max(self.count, 1)
        metrics["entropy"] = self._entropy / tokens
        if kl_coef is not None:
            metrics["kl_loss"] = self._kl_loss / max(self.count, 1)
            metrics["kl_coef"] = kl_coef
        named = _named("actor", metrics) | _named("training", self._mismatch.summary())
        if self._distilled:
            named["distillation/reverse_kl"] = self._divergence / tokens
        return named


class CriticTotals(_Steps):
    """Sums over the micro-batches of one critic update."""

    def __init__(self) -> None:
        super().__init__()
        self._stats = ValueStats()
        self._loss = 0.0

    def observe(self, loss: float, stats: ValueStats) -> None:
        """One micro-batch's share of the loss."""
        self._stats += stats
        self._loss += loss

    def merge(self, peers: Peers) -> None:
        """Add what the other ranks saw."""
        (self._stats, self._loss), *others = peers.collect((self._stats, self._loss))
        for stats, loss in others:
            self._stats += stats
            self._loss += loss

    def metrics(self) -> dict[str, float]:
        """Named ``critic/…``."""
        metrics = self._stats.summary() | self.summary()
        metrics["vf_loss"] = self._loss / max(self.count, 1)
        return _named("critic", metrics)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
