"""How many sequences the memory of a device has room for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from agent_r1.errors import EngineError

_CGROUPS = Path("/sys/fs/cgroup")


def slots_within(share: float, model: Any, max_model_len: int, wanted: int) -> int:
    """At most ``wanted`` slots whose keys and values, all of full length, take ``share``.

    Every slot is counted at ``max_model_len`` tokens, because the longest sequence decides
    how long all of them are. Raises :class:`EngineError` where not even one fits.
    """
    weight = next(model.parameters())
    slot = max_model_len * bytes_per_token(model.config, weight.element_size())
    total = device_memory(weight.device)
    fitting = int(share * total // slot)
    if not fitting:
        raise EngineError(
            f"keys and values of one sequence of {max_model_len:,} tokens take "
            f"{slot / 2**30:.1f} GiB, more than the share {share:g} of {total / 2**30:.1f} GiB; "
            "lower data.max_response_length or raise "
            "actor_rollout_ref.rollout.gpu_memory_utilization"
        )
    return min(wanted, fitting)


def bytes_per_token(config: Any, element_size: int) -> int:
    """Of the keys and values of one position, over all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * dim * element_size)


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of what this process may have of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits()])


def _limits() -> list[int]:
    """The limits of the control groups that this process is in (version 2)."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].split("\n")[0]
    except OSError:
        return []
    found = []
    group = _CGROUPS / own
    for folder in (group, *group.parents):
        try:
            found.append(int((folder / "memory.max").read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
