"""The tasks of a split by the environment of the run that they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from agent_r1.config.environments import environment_configs
from agent_r1.config.schema import Config
from agent_r1.data.sources import BadRow, load_configured
from agent_r1.errors import DataError
from agent_r1.registry import nearest
from agent_r1.types import Task

Read: TypeAlias = Callable[[Config, str], Sequence[Task]]
"""Reads the files that a configuration names, given it and the entry of ``envs`` it is of (empty:
those of the run)."""


def by_environment(config: Config, split: str, read: Read) -> dict[str, tuple[Task, ...]]:
    """The tasks of the run's files and of those of each entry, by the name of their environment.

    A run with one environment has it under the empty name; what has no task is left out.

    Raises:
        DataError: a task names no environment of the run; an environment has no training task;
            or as ``read``.
    """
    envs = environment_configs(config)
    shared = _named(config, split, "", read)
    if not config.envs:
        return {"": tuple(replace(task, env="") for task in shared)} if shared else {}
    found: dict[str, list[Task]] = defaultdict(list)
    for name, tasks in _assigned(config, split, shared).items():
        found[name] += tasks
    for env in envs:
        own = _named(env.config, split, env.name, read)
        found[env.name] += [replace(t, id=f"{env.name}/{t.id}", env=env.name) for t in own]
    empty = [env.name for env in envs if not found[env.name]]
    if empty and split == "train":
        raise DataError(
            f"no training task for {', '.join(empty)}: name files in envs.{empty[0]}.data."
            f"train_files, or rows of data.train_files whose column {config.data.env_key!r} "
            f"(data.env_key) says {empty[0]}"
        )
    return {env.name: tuple(found[env.name]) for env in envs if found[env.name]}


def look(
    config: Config, split: str, at_most: int | None = None
) -> tuple[dict[str, tuple[Task, ...]], tuple[BadRow, ...]]:
    """The same for a person who looks: unusable rows are given beside the tasks.

    ``at_most`` bounds what is taken of an environment's generators, which may never end. Tasks
    of the run's files in a run with several environments are all read, as each names its own.

    Raises:
        DataError: nothing is configured for this split; or as :func:`by_environment`.
    """
    bad: list[BadRow] = []

    def read(own: Config, entry: str) -> Sequence[Task]:
        files = own.data.train_files if split == "train" else own.data.val_files
        endless = any(file.startswith("generator:") for file in files) and not own.envs
        loaded = load_configured(
            own.data, split, config.trainer.seed, max_samples=at_most if endless else None
        )
        bad.extend(loaded.bad)
        return loaded.tasks

    found = by_environment(config, split, read)
    if not found and not bad:
        raise DataError(
            f"no {split} tasks: name files in data.{split}_files"
            + (f", or in envs.{next(iter(config.envs))}.data.{split}_files" if config.envs else "")
        )
    return found, tuple(bad)


def _named(config: Config, split: str, entry: str, read: Read) -> Sequence[Task]:
    files = config.data.train_files if split == "train" else config.data.val_files
    return read(config, entry) if files else ()


def _assigned(config: Config, split: str, tasks: Sequence[Task]) -> Mapping[str, list[Task]]:
    """Tasks by the environment that they name; all that name none of the run's are told."""
    found: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        found[task.env].append(task)
    unknown = [name for name in found if name not in config.envs]
    if unknown:
        key, known = config.data.env_key, list(config.envs)
        lines = [
            f"  {len(found[name])} tasks (the first is {found[name][0].id}) "
            + (f"name {name!r}{nearest(name, known)}" if name else "name none")
            for name in unknown
        ]
        raise DataError(
            f"{split} tasks of environments that envs does not have (it has {', '.join(known)}; "
            f"tasks name theirs in the column {key!r}, data.env_key):\n" + "\n".join(lines)
        )
    return found
