"""The state of a worker between one process's form and that of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from agent_r1.models.dcp import kept_as, kept_key
from agent_r1.models.sharded import first_names

Place = Callable[[Any, Tensor], Any]
"""A stored value, and the tensor that its successor is spread like."""


def split(tree: Any, same: Mapping[str, str], shards: dict[str, Tensor], at: str = "") -> Any:
    """The tree with sharded tensors named only; they go to ``shards``, by their place in it.

    What every rank has alike stays in the tree. ``same`` names the place of a tensor that is
    there twice.
    """
    if isinstance(tree, DTensor):
        key = same.get(at, at)
        shards[key] = tree.detach()
        return kept_as(key)
    if isinstance(tree, Tensor):
        return tree.detach().cpu()
    inside = f"{at}." if at else ""
    if isinstance(tree, Mapping):
        return {k: split(value, same, shards, f"{inside}{k}") for k, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(split(v, same, shards, f"{inside}{i}") for i, v in enumerate(tree))
    return tree


def tied_places(role: str, module: nn.Module) -> dict[str, str]:
    """Where a network's weights that have two names are kept, by their place in the state."""
    names = first_names(module)
    return {f"{role}.module.{name}": f"{role}.module.{first}" for name, first in names.items()}


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``tensor``, as ``like`` is spread; every rank has all of it."""
    if not isinstance(like, DTensor):
        return tensor
    moved = tensor.to(like.device, like.dtype)
    part: Tensor = distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # the part may be a view, which keeps all of the tensor or its file


class Places:
    """Makes room for what shards hold, and remembers which room is for which of them."""

    def __init__(self) -> None:
        self.rooms: dict[str, Tensor] = {}

    def __call__(self, value: Any, like: Tensor) -> Any:
        """``value`` as this rank needs it: cut if it is whole, to be read if it is named.

        Nothing of it is left in a file that is mapped.
        """
        if (key := kept_key(value)) is not None:
            return self.rooms.setdefault(key, torch.zeros_like(like))
        if isinstance(value, Tensor) and value.ndim:
            return placed(value, like)
        return value.clone() if isinstance(value, Tensor) else value


def scattered(
    state: Mapping[str, Any], module: nn.Module, parameters: Sequence[nn.Parameter], place: Place
) -> dict[str, Any]:
    """The state of a :class:`~agent_r1.trainer.trainable.Trainable`, spread as its weights are.

    ``parameters`` are those that the optimizers count, in their order. Weights that have
    float32 masters are taken from those: shards are float32.
    """
    own = module.state_dict()
    stored = {**state["module"], **(state["master"] or {})}
    weights = {name: place(value, own[name]) for name, value in stored.items()}
    optimizers = []
    first = 0
    for optimizer in state["optimizers"]:
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        moments = {
            number: {key: place(value, parameters[first + number]) for key, value in kept.items()}
            for number, kept in optimizer["state"].items()
        }
        optimizers.append({**optimizer, "state": moments})
        first += len(numbers)
    return {**state, "module": weights, "master": None, "optimizers": optimizers}
