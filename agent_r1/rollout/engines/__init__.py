"""Generation engines, by name."""

from __future__ import annotations

from collections.abc import Callable

from agent_r1.registry import Registry
from agent_r1.rollout.engine import Engine

ENGINES: Registry[Callable[..., Engine]] = Registry(
    "generation engine",
    group="agent_r1.engines",
    builtin={"embedded": "agent_r1.rollout.engines.embedded:EmbeddedEngine"},
)
"""``(model, tokenizer, *, max_model_len, max_slots, memory_share, deterministic, readmit_after,
dtype) -> Engine``."""
