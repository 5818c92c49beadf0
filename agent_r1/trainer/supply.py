"""Tasks in the order of sampling: those to be sampled again first, then the loader's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent_r1.data.loader import Loader
from agent_r1.trainer.curriculum import Curriculum
from agent_r1.types import Task

_PATIENCE = 100
"""Batches in a row of which the curriculum may want nothing before it is overruled."""


class TaskSupply:
    """An endless line of tasks. Its state names every task that left the loader untrained."""

    def __init__(self, loader: Loader, curriculum: Curriculum | None = None) -> None:
        self._loader = loader
        self._curriculum = curriculum
        self._line: list[Task] = []

    def take(self, count: int) -> list[Task]:
        """The next tasks; whole batches of the loader while nothing else is in line."""
        batches = 0
        while len(self._line) < count:
            batches += 1
            tasks = next(self._loader)
            if self._curriculum is not None and batches <= _PATIENCE:
                tasks = [task for task in tasks if self._curriculum.wants(task)]
            self._line += tasks
        taken, self._line = self._line[:count], self._line[count:]
        return taken

    def again(self, tasks: Iterable[Task]) -> None:
        """Put tasks at the head of the line."""
        self._line[:0] = tasks

    def state_dict(self, owed: Iterable[Task] = ()) -> dict[str, Any]:
        """``owed`` are tasks that were taken and have to be sampled again."""
        return {
            "loader": self._loader.state_dict(),
            "line": [task.id for task in (*owed, *self._line)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loader.load_state_dict(state["loader"])
        tasks = {task.id: task for task in self._loader.tasks} if state["line"] else {}
        self._line = [tasks[name] for name in state["line"]]
