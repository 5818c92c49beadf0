r"""Reverse KL divergence of a student's next-token distributions to a teacher's, with gradients.

``KL(p_S || p_T) = sum_v p_S(v) [log p_S(v) - log p_T(v)]`` at each position, without ever
holding the logits of all positions: they exist for a chunk of rows at a time and are computed
again for the backward pass.

What a teacher said of a batch is a :class:`TeacherView`. :class:`TeacherStates` holds its
last hidden states, from which whole distributions follow: the exact divergence.
:class:`TopTokens` holds its K most probable tokens; all others are one further event, so that
the divergence is that of two distributions over K + 1 events. It never exceeds the exact one
(data-processing inequality; Cover and Thomas, Elements of Information Theory, section 2.8)
and equals it for K = V.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agent_r1.models.head import Head, rows_at_once


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The K most probable next tokens at each position, ``[B, T, K]`` or ``[M, K]``."""

    ids: Tensor
    logprobs: Tensor

    def select(self, rows: Tensor, width: int) -> TopTokens:
        """``[B, T, K]`` to these rows and the first ``width`` positions."""
        return TopTokens(self.ids[rows, :width], self.logprobs[rows, :width])

    def at(self, rows: Tensor, columns: Tensor) -> TopTokens:
        """``[B, T, K]`` to ``[M, K]``."""
        return TopTokens(self.ids[rows, columns], self.logprobs[rows, columns])

    def to(self, device: torch.device) -> TopTokens:
        """The same on another device."""
        return TopTokens(self.ids.to(device), self.logprobs.to(device))

    def divergence(self, logp: Tensor, rows: slice, temperature: float) -> Tensor:
        """``[C]`` from the student's log-probabilities ``[C, V]`` of these rows."""
        theirs = self.logprobs[rows].to(logp.dtype)
        mine = logp.gather(1, self.ids[rows].long())
        found = (mine.exp() * (mine - theirs)).sum(1)
        if self.ids.shape[1] == logp.shape[1]:
            return found
        rest, their_rest = _rest(mine), _rest(theirs)
        return found + rest.exp() * (rest - their_rest)


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """The teacher's last hidden states, ``[B, T, D]`` or ``[M, D]``, and its output layer."""

    hidden: Tensor
    head: Head

    def select(self, rows: Tensor, width: int) -> TeacherStates:
        """``[B, T, D]`` to these rows and the first ``width`` positions."""
        return replace(self, hidden=self.hidden[rows, :width])

    def at(self, rows: Tensor, columns: Tensor) -> TeacherStates:
        """``[B, T, D]`` to ``[M, D]``."""
        return replace(self, hidden=self.hidden[rows, columns])

    def to(self, device: torch.device) -> TeacherStates:
        """The same on another device."""
        bias = None if self.head.bias is None else self.head.bias.to(device)
        head = replace(self.head, weight=self.head.weight.to(device), bias=bias)
        return TeacherStates(self.hidden.to(device), head)

    def divergence(self, logp: Tensor, rows: slice, temperature: float) -> Tensor:
        """``[C]`` from the student's log-probabilities ``[C, V]`` of these rows."""
        with torch.no_grad():
            theirs = next_logprobs(self.hidden[rows], self.head, temperature).to(logp.dtype)
        return (logp.exp() * (logp - theirs)).sum(1)


TeacherView: TypeAlias = TopTokens | TeacherStates


def reverse_kl(
    hidden: Tensor,
    head: Head,
    teacher: TeacherView,
    temperature: float = 1.0,
    *,
    chunk_rows: int | None = None,
) -> Tensor:
    """``KL(p_S || p_T)`` ``[M]`` in nats of the tempered distributions behind ``hidden[M, D]``.

    ``teacher`` is a view of the same M positions. Differentiable with respect to ``hidden``,
    weight and bias of the student. In float32 (float64 for float64 input).
    """
    size = chunk_rows or rows_at_once(hidden, head)

    def of_chunk(states: Tensor, rows: slice) -> Tensor:
        return teacher.divergence(next_logprobs(states, head, temperature), rows, temperature)

    found = []
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        found.append(checkpoint(of_chunk, hidden[rows], rows, use_reentrant=False))
    if not found:  # an empty micro-batch is still a function of the weights
        return hidden.float().sum(1)
    return torch.cat(found)


def top_tokens(
    hidden: Tensor, head: Head, k: int, temperature: float = 1.0, *, chunk_rows: int | None = None
) -> TopTokens:
    """The ``k`` most probable tokens ``[M, k]`` (all of them if there are fewer)."""
    size = chunk_rows or rows_at_once(hidden, head)
    k = min(k, head.weight.shape[0])
    ids = torch.empty((len(hidden), k), dtype=torch.int64, device=hidden.device)
    logprobs = torch.empty((len(hidden), k), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        best = next_logprobs(hidden[rows], head, temperature).topk(k, dim=1)
        ids[rows], logprobs[rows] = best.indices, best.values.float()
    return TopTokens(ids, logprobs)


def next_logprobs(hidden: Tensor, head: Head, temperature: float) -> Tensor:
    """``[C, V]`` log-probabilities of the tempered distribution, in float32 or float64."""
    logits = head.scale * (hidden @ head.weight.to(hidden.dtype).t())
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / temperature, dim=1)


def _rest(logprobs: Tensor) -> Tensor:
    """Logarithm of what the tokens ``[C, K]`` leave, bounded away from 0 by rounding."""
    left = 1.0 - logprobs.exp().sum(1)
    return left.clamp_min(torch.finfo(logprobs.dtype).eps).log()
