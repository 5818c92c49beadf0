"""Training as a library: one step at a time, with objects in place of names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import uuid4

from agent_r1.config.load import as_overrides, load_config
from agent_r1.config.schema import Config
from agent_r1.data.sources import GENERATORS
from agent_r1.errors import ConfigError
from agent_r1.reward.base import register_reward
from agent_r1.tool.base import BaseToolEnv
from agent_r1.tool.protocol import Environment
from agent_r1.tool.registry import EnvClass, register_env
from agent_r1.tool.threads import LoopThread
from agent_r1.trainer.build import build_parts
from agent_r1.trainer.rl import RLTrainer
from agent_r1.types import Task, Trajectory

T = TypeVar("T")
Rows = Sequence[Task | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step was made of and what came of it."""

    number: int
    """Counted from 1."""
    metrics: dict[str, float]
    trajectories: tuple[Trajectory, ...]
    """All that were sampled for it, those that were not trained on too."""

    @property
    def reward(self) -> float:
        """Mean reward of the trajectories that were scored."""
        values = [t.reward.value for t in self.trajectories if t.reward is not None]
        return sum(values) / len(values) if values else float("nan")


class Trainer:
    """A run that the caller drives.

    Args:
        config: a :class:`Config`, or the path of a YAML file.
        settings: further settings by dotted name, over those of ``config``.
        model: a transformers model to train, with its ``tokenizer``. It is copied, not changed;
            the trained one is :attr:`model`.
        env: an environment, or its class.
        reward: a function of a trajectory that returns a number or a :class:`Reward`. It is
            called in this process, without a time limit.
        data: tasks, or mappings with ``prompt`` and ``answer``.
        validation: the same, to validate on.

    Works where an event loop is running, as in a notebook: the run has a thread of its own.
    Ctrl-C in :meth:`step` or :meth:`fit` cancels sampling, or waits for the update under way, and
    raises ``KeyboardInterrupt``; the trainer stays usable. Use it as a context manager, or
    :meth:`close` it.

    Raises:
        AgentR1Error: whatever is wrong with the configuration, all of it at once.
    """

    def __init__(
        self,
        config: Config | Path | str | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        model: Any = None,
        tokenizer: Any = None,
        env: BaseToolEnv | type[BaseToolEnv] | type[Environment] | None = None,
        reward: Callable[[Trajectory], Any] | None = None,
        data: Rows | None = None,
        validation: Rows | None = None,
    ) -> None:
        self._stack = ExitStack()
        try:
            given = dict(settings or {})
            given |= _named("data.train_files", data) | _named("data.val_files", validation)
            if model is not None:
                given["actor_rollout_ref.model.path"] = self._saved(model, tokenizer)
            if env is not None:
                given["tool.env"] = _registered_env(env)
            if reward is not None:
                given["reward.name"] = register_as(
                    lambda n: register_reward(n, inline=True), reward
                )
            self.config = load_config(config, as_overrides(given), environ={})
            self._thread = LoopThread("agent-r1-trainer")
            self._stack.callback(self._thread.close)
            self._parts, resume = build_parts(self.config, self._stack)
            self._trainer = RLTrainer(self.config, self._parts)
            self._begun = False
            self._resume = resume
        except BaseException:
            self._stack.close()
            raise

    @property
    def number(self) -> int:
        """Steps that are done."""
        return self._trainer.step

    @property
    def model(self) -> Any:
        """The policy as it is now."""
        return self._parts.worker.policy  # type: ignore[attr-defined]  # of a local worker

    @property
    def folder(self) -> Path:
        """The run folder: metrics, trajectories, checkpoints."""
        return self.config.trainer.run_dir

    def step(self) -> Step:
        """Sample, learn, publish: one training step, at the end of which it is logged."""
        self._begin()
        metrics, trajectories = self._do(self._trainer.advance())
        return Step(self._trainer.step, metrics, tuple(trajectories))

    def fit(self, steps: int | None = None) -> list[Step]:
        """``steps`` more steps, or those that are left; what each was made of."""
        self._begin()
        left = self._trainer.total_steps - self.number
        return [self.step() for _ in range(left if steps is None else steps)]

    def save(self) -> Path:
        """Write a checkpoint of the present step; returns the folder of the model in it."""
        self._begin()
        self._trainer.save()
        self._trainer.settle()
        found = self._parts.checkpoints.latest()
        assert found is not None
        return found / "policy"

    def close(self) -> None:
        """End the run. Nothing is saved: see :meth:`save`."""
        try:
            if self._begun:
                self._begun = False
                self._do(self._trainer.end())
        finally:
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._do(self._trainer.begin(self._resume))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.run(work)

    def _saved(self, model: Any, tokenizer: Any) -> str:
        if tokenizer is None:
            raise ConfigError("Trainer(model=...) needs its tokenizer too: Trainer(tokenizer=...)")
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="agent-r1-model-"))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


def register_as(register: Callable[[str], Callable[[T], T]], entry: T) -> str:
    """Give an object a name of its own in a registry."""
    name = f"given-{uuid4().hex[:8]}"
    register(name)(entry)
    return name


def _named(key: str, rows: Rows | None) -> dict[str, Any]:
    if rows is None:
        return {}
    tasks = [_task(number, row) for number, row in enumerate(rows)]

    def given(split: str, seed: int, **_: Any) -> Iterable[Task]:
        return tasks

    return {key: [f"generator:{register_as(GENERATORS.register, given)}"]}


def _task(number: int, row: Task | Mapping[str, Any]) -> Task:
    if isinstance(row, Task):
        return row
    missing = [key for key in ("prompt", "answer") if key not in row]
    if missing:
        raise ConfigError(f"row {number} of the data has no {missing[0]!r}; it has {sorted(row)}")
    prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
    rest = {key: value for key, value in row.items() if key not in ("prompt", "answer", "id")}
    source = str(rest.pop("data_source", "given"))
    return Task(str(row.get("id", number)), prompt, row["answer"], source, rest)


def _registered_env(env: BaseToolEnv | EnvClass) -> str:
    if isinstance(env, type):
        return register_as(register_env, env)
    given = type(type(env).__name__, (BaseToolEnv,), {"__new__": lambda cls: env})
    return register_as(register_env, given)
