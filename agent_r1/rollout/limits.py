"""Where an episode is cut short, and how its turns are sampled."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from agent_r1.types import SamplingParams


@dataclass(frozen=True, slots=True)
class LoopLimits:
    """Where an episode is cut short. Lengths in tokens, times in seconds."""

    max_turns: int
    max_response_length: int
    """Model and tool tokens of the whole trajectory."""
    max_tokens_per_turn: int | None = None
    timeout_s: float | None = None
    """Wall clock of the trajectory, waiting for the engine included."""
    tool_timeout_s: float | None = None
    """Wall clock of one environment step; a tool that hangs fails its trajectory."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a trajectory samples; the seed of each turn is derived from ``seed``."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def params(self, budget: int, trajectory_id: str, turn: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=budget,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            seed=derive_seed(self.seed, trajectory_id, turn),
        )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a function of its parts, on every machine and in every run."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
