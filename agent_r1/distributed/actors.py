"""Actors that hold a process each: made in a reserved place or on a node, and ended."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from agent_r1.distributed.cluster import require_ray
from agent_r1.distributed.process import Process

_END_S: Final = 15.0
_CARRIED: Final = ("AGENT_R1_", "HF_", "NCCL_", "OMP_", "PYTHON", "TORCH", "VLLM_", "WANDB_")


def environment() -> dict[str, str]:
    """What of this process's environment every process of the run gets, wherever it is."""
    return {name: value for name, value in os.environ.items() if name.startswith(_CARRIED)}


def actor_in(group: Any, bundle: int, *, cores: int, cards: int) -> Any:
    """An actor in a bundle of a placement group, which it never leaves."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    options = {"num_cpus": cores, "num_gpus": cards, "scheduling_strategy": place}
    return require_ray().remote(max_restarts=0, **options)(Process).remote()


def actor_on(node_id: str) -> Any:
    """An actor on a node, beside whatever else is there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": place}
    return require_ray().remote(max_restarts=0, **options)(Process).remote()


def end_all(actors: Iterable[Any]) -> None:
    """End the processes of these actors, then the actors; those that are lost do not matter."""
    ray = require_ray()
    held = list(actors)
    asked = [actor.end.remote() for actor in held]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=_END_S)
    for actor in held:
        with suppress(ray.exceptions.RayError):
            ray.kill(actor)
