"""The state of a worker between one process's form and that of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from agent_r1.models.sharded import whole


def map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same dictionaries and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, change) for value in tree)
    return tree


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, in the machine's memory."""
    return whole(tensor.detach()).cpu()


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``tensor``, as ``like`` is spread; every rank has all of it."""
    if not isinstance(like, DTensor):
        return tensor
    moved = tensor.to(like.device, like.dtype)
    part: Tensor = distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
    return part


def scattered(
    state: Mapping[str, Any], module: nn.Module, parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """The state of a :class:`~agent_r1.trainer.trainable.Trainable`, spread as its weights are.

    ``parameters`` are those that the optimizers count, in their order.
    """
    own = module.state_dict()
    weights = {name: placed(tensor, own[name]) for name, tensor in state["module"].items()}
    optimizers = []
    first = 0
    for optimizer in state["optimizers"]:
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        moments = {
            number: {
                key: placed(value, parameters[first + number])
                if isinstance(value, Tensor) and value.ndim
                else value
                for key, value in kept.items()
            }
            for number, kept in optimizer["state"].items()
        }
        optimizers.append({**optimizer, "state": moments})
        first += len(numbers)
    return {**state, "module": weights, "optimizers": optimizers}
