"""Which tasks are worth sampling: a memory of how often each was solved.

A task that all trajectories of its group solve, or none, gives no gradient. Its success rate is
remembered as a moving average, and a task that looks solved or hopeless is sampled in only a
share of its turns, so that it is noticed when that changes (online difficulty filtering:
Bae et al. 2025; the skipped share follows DAPO's observation that such groups are waste).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.config.task import CurriculumConfig
from agent_r1.types import Task


class Curriculum:
    """Success rates by task id; part of every checkpoint."""

    def __init__(self, config: CurriculumConfig, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._rates: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._skipped = 0
        self._asked = 0

    def wants(self, task: Task) -> bool:
        """Whether to sample the task now that its turn has come."""
        self._asked += 1
        if not self._decided(self._rates.get(task.id)):
            return True
        turn = self._turns[task.id] = self._turns.get(task.id, 0) + 1
        digest = hashlib.blake2b(f"{self._seed}/{task.id}/{turn}".encode(), digest_size=8).digest()
        kept = int.from_bytes(digest, "big") / 2**64 < self._config.keep
        self._skipped += not kept
        return kept

    def record(self, task: Task, successes: Sequence[bool]) -> None:
        """What the members of a group came to."""
        if not successes:
            return
        rate = sum(successes) / len(successes)
        before = self._rates.get(task.id, rate)
        self._rates[task.id] = before + self._config.momentum * (rate - before)

    def metrics(self) -> dict[str, float]:
        """Shares of the tasks seen, and of the turns skipped since the last call."""
        rates = list(self._rates.values())
        known = max(len(rates), 1)
        found = {
            "curriculum/tasks": float(len(rates)),
            "curriculum/solved": sum(r >= self._config.solved for r in rates) / known,
            "curriculum/hopeless": sum(r <= self._config.hopeless for r in rates) / known,
            "curriculum/skipped": self._skipped / max(self._asked, 1),
        }
        self._skipped = self._asked = 0
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"rates": dict(self._rates), "turns": dict(self._turns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rates = dict(state["rates"])
        self._turns = dict(state["turns"])

    def _decided(self, rate: float | None) -> bool:
        if rate is None:
            return False
        return rate >= self._config.solved or rate <= self._config.hopeless
