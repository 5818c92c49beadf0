"""Batches over the tasks of several environments, each with its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from agent_r1.data.loader import identity_of, order_of, require_same_data
from agent_r1.errors import DataError
from agent_r1.types import Task


class MixedLoader:
    """Endless batches in which every environment has its share, evenly spread.

    The next task comes from the environment that is furthest behind its share
    (Sainte-Laguë's rule: least ``(drawn + 1/2) / weight``, the first of equals), so after any
    number of tasks each environment is within about one task of its share. Within an
    environment the order is that of :class:`~agent_r1.data.loader.TaskLoader`: pass after pass,
    each a function of ``seed``, the environment's name and the number of the pass. What was
    drawn of each environment is therefore all the state there is.

    ``weights`` are relative to each other; without them environments weigh as many as they have
    tasks. An epoch has as many batches as all tasks together fill, at least one. A small
    environment with a large weight repeats its tasks within it.

    Raises:
        DataError: an environment has no task, or a weight is not above 0.
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Task]],
        batch_size: int,
        *,
        weights: Mapping[str, float] | None = None,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"a batch needs at least one task, not {batch_size}")
        weights = weights or {name: len(members) for name, members in tasks.items()}
        for name, members in tasks.items():
            if not members or weights[name] <= 0:
                raise DataError(
                    f"the environment {name!r} has {len(members)} tasks and the weight "
                    f"{weights[name]}; give it tasks and a weight above 0, or take it out of envs"
                )
        self._by_env = {name: tuple(members) for name, members in tasks.items()}
        self.tasks = tuple(task for members in self._by_env.values() for task in members)
        self.weights = {name: float(weights[name]) for name in self._by_env}
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drawn = dict.fromkeys(self._by_env, 0)
        """Tasks taken of each environment so far."""
        self._orders: dict[str, tuple[int, list[int]]] = {}

    @property
    def batches_per_epoch(self) -> int:
        return max(1, len(self.tasks) // self.batch_size)

    def __iter__(self) -> Iterator[list[Task]]:
        return self

    def __next__(self) -> list[Task]:
        return [self._next_task() for _ in range(self.batch_size)]

    def state_dict(self) -> dict[str, Any]:
        """What was drawn, and of what."""
        return {"drawn": dict(self.drawn), "of": self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Continue from a saved position.

        Raises:
            CheckpointError: the position belongs to other tasks, weights or another order.
        """
        require_same_data(self._identity(), state["of"])
        self.drawn = {name: int(state["drawn"][name]) for name in self._by_env}
        return self

    def _next_task(self) -> Task:
        name = min(self.drawn, key=lambda name: (self.drawn[name] + 0.5) / self.weights[name])
        members = self._by_env[name]
        turn, place = divmod(self.drawn[name], len(members))
        self.drawn[name] += 1
        return members[self._order(name, turn)[place]]

    def _order(self, name: str, turn: int) -> list[int]:
        known = self._orders.get(name)
        if known is None or known[0] != turn:
            count = len(self._by_env[name])
            order = order_of(f"{self.seed}/{name}", turn, count, shuffle=self.shuffle)
            known = self._orders[name] = (turn, order)
        return known[1]

    def _identity(self) -> dict[str, Any]:
        return {
            **identity_of(self.tasks),
            "envs": {name: len(members) for name, members in self._by_env.items()},
            "weights": self.weights,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
