"""Networks spread over ranks by FSDP2 (``torch.distributed.fsdp.fully_shard``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from agent_r1.errors import ModelError
from agent_r1.models.sharded import TIED, whole

_REDUCED_ONCE = "agent_r1_reduced_once"
"""Attribute of a sharded model whose gradients are added up at the end of an optimizer step."""


def shard_model(
    model: nn.Module,
    mesh: DeviceMesh,
    *,
    compute: torch.dtype = torch.float32,
    offload: bool = False,
    reshard_after_forward: bool = True,
    reduce_every_pass: bool = True,
) -> nn.Module:
    """Spread ``model`` over ``mesh`` in place: float32 shards, computed with in ``compute``.

    The trunk is the root, because :func:`agent_r1.models.logprobs.token_logprobs` calls it
    directly; each of its layers is gathered when it runs and given up afterwards. An output
    layer of its own, or the head of a critic, is sharded by itself and gathered where it is
    read. FSDP2 replaces the parameters of the trunk, so that an output layer that *is* the
    embedding table is tied to it anew. ``offload`` keeps the shards, and so the optimizer, in
    the machine's memory. A ``mesh`` with two axes is one of groups that each hold all shards.
    Without ``reshard_after_forward`` what was gathered stays until :func:`reshard`, so that the
    micro-batches of an optimizer step gather it once. Without ``reduce_every_pass`` each rank
    keeps its own gradients whole, until :func:`reduce_gradients` is told of the last micro-batch.
    """
    model.to(torch.float32)
    narrow = None if compute is torch.float32 else compute
    policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)
    home = OffloadPolicy()
    if offload:
        home = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "offload_policy": home}
    trunk: Any = model.base_model
    head = _head_of(model)
    table: Any = trunk.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is table.weight
    for layer in _layers(trunk):
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    fully_shard(trunk, reshard_after_forward=False, **options)
    trunk.set_reshard_after_backward(reshard_after_forward)
    setattr(model, _REDUCED_ONCE, not reduce_every_pass)
    if tied:
        assert head is not None
        head.weight = table.weight
        setattr(model, TIED, True)
    elif head is not None:
        fully_shard(head, **options)
    loose = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    if loose:
        raise ModelError(
            f"{type(model).__name__} keeps weights outside of its decoder and its output layer "
            f"({', '.join(loose[:3])}), which cannot be sharded; train it in one process"
        )
    return model


def reduce_gradients(model: nn.Module, *, last: bool) -> None:
    """Say before a pass whether it is the last one of an optimizer step.

    Its backward pass then adds up the ranks' gradients, and those of the passes before that
    were kept for it.
    """
    for module in model.modules() if getattr(model, _REDUCED_ONCE, False) else ():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last, recurse=False)


def _head_of(model: nn.Module) -> Any:
    """The output layer, or the linear output of a critic."""
    find: Any = model.get_output_embeddings
    layer = find()
    return layer if layer is not None else getattr(model, "head", None)


def _layers(trunk: nn.Module) -> list[nn.Module]:
    """The decoder's blocks, which are the largest lists of modules that it has."""
    lists = [child for child in trunk.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise ModelError(
            f"{type(trunk).__name__} has no list of layers to shard; train it in one process"
        )
    return [layer for found in lists for layer in found]


def reshard(model: nn.Module | None) -> None:
    """Give up what is gathered still.

    It would be computed with after the next optimizer step as if it were current.
    """
    for module in () if model is None else model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole_parameters(model: nn.Module, keep: bool) -> Iterator[tuple[str, Tensor]]:
    """Every trained parameter by name, gathered one after the other; a tied one comes once.

    All ranks must go through all of them. Only one that wants to ``keep`` them gets tensors
    of its own; to the others they are lent until the next is asked for.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = whole(parameter.detach())
            # Where one rank has all of a weight, gathering gives the weight itself.
            mine = isinstance(parameter, DTensor) and _same_memory(found, parameter.to_local())
            yield name, (found[:0] if not keep else found.clone() if mine else found)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
