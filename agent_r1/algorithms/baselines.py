"""Statistics of groups, in float64.

Seven trajectories that all score 0.7 have a float32 mean that is not quite 0.7, and dividing
the remainder by ``0 + 1e-6`` makes an advantage of 0.06 out of rounding. In float64 the sum
of equal float32 rewards is exact, so that a group without spread has advantage 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroupStats:
    """Of each member's group, repeated on every member: ``[N]`` float64 each."""

    size: Tensor
    """Counted members; 0 for a group of which nobody is counted."""
    mean: Tensor
    std: Tensor
    """Sample standard deviation (ddof = 1); 0 for fewer than two counted members."""


def group_stats(values: Tensor, group: Tensor, counted: Tensor) -> GroupStats:
    """Mean and spread of the ``counted`` members of each group.

    Args:
        values: [N]; what is not counted is not read, NaN included.
        group: [N] int64, any numbering.
        counted: [N] bool.
    """
    _, member = torch.unique(group, return_inverse=True)
    groups = int(member.max()) + 1 if member.numel() else 0
    weight = counted.to(torch.float64)
    kept = torch.where(counted, values.to(torch.float64), weight.new_zeros(()))
    zeros = weight.new_zeros(groups)
    size = zeros.scatter_add(0, member, weight)
    mean = zeros.scatter_add(0, member, kept) / size.clamp(min=1)
    centred = (kept - mean[member]) * weight
    squares = zeros.scatter_add(0, member, centred.square())
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    return GroupStats(size[member], mean[member], std[member])
