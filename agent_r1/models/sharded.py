"""What the forward pass needs to know of weights that are spread over several ranks.

A sharded weight is a torch ``DTensor``. The trunk gathers its own as it runs (FSDP2); the
output layer and a critic's head are read outside of any module's forward and are gathered
here. None of this does anything to a model of one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

TIED = "agent_r1_tied"
"""Attribute of a sharded model whose output layer is its embedding table."""


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank; a plain tensor is itself.

    The gradient of a gathered weight is the mean over ranks of what each of them computes,
    as FSDP2 takes it: without that placement each rank would keep its own slice of its own
    gradient, which is wrong and raises nothing.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    if not tensor.requires_grad:
        return tensor.full_tensor()
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def is_tied(model: nn.Module) -> bool:
    """Whether the output layer of a *sharded* model is its embedding table."""
    return bool(getattr(model, TIED, False))


def compute_device(model: nn.Module) -> torch.device:
    """Where the forward pass runs, which need not be where the shards are kept."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    weight: Tensor = table.weight
    if isinstance(weight, DTensor) and weight.device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return weight.device


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of ``model`` are spread over ranks."""
    found: Any = next(model.parameters(), None)
    return isinstance(found, DTensor)


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a parameter after its first, the first."""
    seen: dict[nn.Parameter, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    firsts = {name: seen.setdefault(parameter, name) for name, parameter in named}
    return {name: first for name, first in firsts.items() if name != first}
