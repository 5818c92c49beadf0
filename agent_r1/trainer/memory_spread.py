"""How the networks of a run lie over its processes, as far as memory depends on it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from agent_r1.config.policy import FsdpConfig
from agent_r1.config.schema import Config


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes train together: in all, and on one machine."""

    total: int
    local: int


ALONE = Processes(1, 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """How a network lies over several processes: see :class:`agent_r1.config.policy.FsdpConfig`."""

    shards: int
    """Processes that share one copy."""
    local: int
    """Processes whose host memory is the same machine's; 1 on a CPU, of which each has a share."""
    offload: bool
    """Shards, moments and gradients are in host memory."""
    keeps: bool
    """Every layer stays gathered from the first forward pass of an optimizer step to its end."""
    sums_whole: bool
    """Gradients of all weights are summed on every process until the end of the step."""


def processes_of(config: Config) -> Processes:
    """Those of the job that this process belongs to, else those that are configured."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "RANK" in os.environ:
        return Processes(world, int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    trainer = config.trainer
    return Processes(trainer.nnodes * trainer.n_gpus_per_node, trainer.n_gpus_per_node)


def spread_of(many: Processes, fsdp: FsdpConfig, offload: bool, device: str) -> Spread | None:
    """How ``many`` processes hold a network; None where one has all of it."""
    if many.total == 1:
        return None
    return Spread(
        shards=many.total if fsdp.fsdp_size < 1 else fsdp.fsdp_size,
        local=1 if device == "cpu" else many.local,
        offload=offload or fsdp.param_offload or fsdp.optimizer_offload,
        keeps=not fsdp.reshards(device),
        sums_whole=not fsdp.syncs_every_pass(device),
    )
