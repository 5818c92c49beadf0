"""Drawing tokens from logits, each row by a random stream of its own.

The draw of a row is one uniform number, a hash of its seed and of the position in its
completion, pushed through the inverse of the cumulative distribution. Nothing about the
other rows of the batch enters, and no state is carried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 256
_DIRECT_VOCABULARY = 8192


@dataclass(frozen=True, slots=True)
class RowSampling:
    """The parameters of the rows of one step, each ``[N]``."""

    seed: NDArray[np.uint64]
    position: NDArray[np.int64]
    """How many tokens of the completion were sampled before this one."""
    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float64]


def uniforms(seed: NDArray[np.uint64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per ``(seed, position)``, 53 bits each.

    The mixing function is SplitMix64's finalizer (Steele, Lea, Flood 2014), applied to
    the seed and again to the seed's image advanced by the position.
    """
    start = _mix(seed + _GOLDEN)
    mixed = _mix(start + (position.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: Tensor, rows: RowSampling) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw one token per row of ``logits[N, V]``; also its log-probability.

    The log-probability is that of the tempered distribution before ``top_k`` and
    ``top_p`` cut it; at temperature 0 (greedy) that of the untempered one.
    """
    greedy = rows.temperature == 0
    scaled = logits.float()
    if np.any(rows.temperature[~greedy] != 1):
        divisor = np.where(greedy, 1.0, rows.temperature).astype(np.float32)
        scaled = scaled / torch.from_numpy(divisor).to(logits.device)[:, None]
    logp = scaled.log_softmax(-1)
    if greedy.all():
        tokens = logp.argmax(-1)
    else:
        weights = _restrict(logp.exp(), rows)
        draws = torch.from_numpy(uniforms(rows.seed, rows.position)).to(logits.device)
        tokens = inverse_cdf(weights, draws)
        if greedy.any():
            chosen = torch.from_numpy(greedy).to(logits.device)
            tokens = torch.where(chosen, logp.argmax(-1), tokens)
    picked = logp.gather(-1, tokens[:, None])[:, 0]
    return tokens.cpu().numpy(), picked.cpu().numpy()


def inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """The index at which the running sum of ``weights[N, V]`` passes ``draws[N]`` of its total.

    Sums are float64. Large vocabularies are searched in two levels, blocks and then the
    entries of one block, which reads them once without writing a running sum of them.
    """
    if weights.shape[1] <= _DIRECT_VOCABULARY:
        return _search(weights.double(), draws)[0]
    missing = -weights.shape[1] % _BLOCK
    blocks = torch.nn.functional.pad(weights, (0, missing)).view(weights.shape[0], -1, _BLOCK)
    block, rest = _search(blocks.sum(-1, dtype=torch.float64), draws)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, _BLOCK))[:, 0].double()
    cdf = inside.cumsum(-1)
    return block * _BLOCK + _first_above(cdf, rest)


def _search(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The index reached and what is left of the draw's mass inside it."""
    cdf = weights.cumsum(-1)
    target = draws * cdf[:, -1]
    index = _first_above(cdf, target)
    before = cdf.gather(-1, index[:, None])[:, 0] - weights.gather(-1, index[:, None])[:, 0]
    return index, (target - before).clamp_min(0)


def _first_above(cdf: Tensor, target: Tensor) -> Tensor:
    """The first index whose running sum exceeds the target; its own weight is positive.

    Sums that are not numbers give the last index; the caller sees the log-probability.
    """
    below_total = torch.nextafter(cdf[:, -1], torch.zeros_like(target))
    target = torch.minimum(target, below_total)[:, None]
    return torch.searchsorted(cdf, target, right=True)[:, 0].clamp_max(cdf.shape[1] - 1)


def restricted(rows: RowSampling) -> NDArray[np.bool_]:
    """``[N]``: rows that ``top_k`` or ``top_p`` cut; on greedy ones they change nothing."""
    limited: NDArray[np.bool_] = (rows.temperature != 0) & ((rows.top_k > 0) | (rows.top_p < 1))
    return limited


def _restrict(probs: Tensor, rows: RowSampling) -> Tensor:
    """Zero what ``top_k`` and ``top_p`` exclude, on the rows that use them."""
    limited = np.flatnonzero(restricted(rows))
    if limited.size == 0:
        return probs
    where = torch.from_numpy(limited).to(probs.device)
    top_k = torch.from_numpy(rows.top_k[limited]).to(probs.device)
    top_p = torch.from_numpy(rows.top_p[limited]).to(probs.device)
    values, order = probs[where].sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[1], device=probs.device)
    keep = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    values = values * keep
    running = values.double().cumsum(-1)
    mass_before = running - values.double()
    values = values * (mass_before < top_p[:, None] * running[:, -1:])
    return probs.index_copy(0, where, torch.zeros_like(values).scatter(-1, order, values))
