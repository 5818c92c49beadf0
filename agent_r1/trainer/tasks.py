"""The tasks of a run, by environment: read, assigned, and those kept whose prompts fit."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent_r1.config.environments import EnvironmentConfig, environment_configs
from agent_r1.config.schema import Config
from agent_r1.data.sources import load_configured, split_overlong
from agent_r1.errors import DataError
from agent_r1.registry import nearest
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.context import ContextWriter
from agent_r1.rollout.opening import announced
from agent_r1.types import Task

_LOG = logging.getLogger(__name__)


def load_split(
    config: Config, codec: Codec, split: str, seed: int, *, measured: bool = True
) -> dict[str, tuple[Task, ...]]:
    """The tasks of one split whose prompts fit, by the name of their environment.

    A run with one environment has it under the empty name. ``measured=False`` takes all tasks,
    where no tokenizer can tell how long they are.

    Raises:
        DataError: a source cannot be read; a task names no environment of the run; an
            environment has no training task; no prompt fits.
    """
    envs = environment_configs(config)
    found = _by_environment(config, envs, split, seed)
    if not measured:
        return found
    return {
        env.name: _fitting(env, codec, split, found[env.name]) for env in envs if env.name in found
    }


def _by_environment(
    config: Config, envs: Sequence[EnvironmentConfig], split: str, seed: int
) -> dict[str, tuple[Task, ...]]:
    shared = _read(config, split, seed, "")
    if not config.envs:
        return {"": tuple(replace(task, env="") for task in shared)} if shared else {}
    found: dict[str, list[Task]] = defaultdict(list)
    for name, tasks in _assigned(config, split, shared).items():
        found[name] += tasks
    for env in envs:
        own = _read(env.config, split, seed, f" of envs.{env.name}")
        found[env.name] += [replace(t, id=f"{env.name}/{t.id}", env=env.name) for t in own]
    empty = [env.name for env in envs if not found[env.name]]
    if empty and split == "train":
        raise DataError(
            f"no training task for {', '.join(empty)}: name files in envs.{empty[0]}.data."
            f"train_files, or rows of data.train_files whose column {config.data.env_key!r} "
            f"(data.env_key) says {empty[0]}"
        )
    return {env.name: tuple(found[env.name]) for env in envs if found[env.name]}


def _read(config: Config, split: str, seed: int, where: str) -> tuple[Task, ...]:
    """What the files of a split hold; bad rows are an error, or are told."""
    data = config.data
    if not (data.train_files if split == "train" else data.val_files):
        return ()
    loaded = load_configured(data, split, seed)
    if not data.skip_bad_rows:
        return loaded.strict()
    if loaded.bad:
        rows = "\n".join(f"  {row}" for row in loaded.bad)
        _LOG.warning(
            "%d %s rows%s are no tasks and are left out:\n%s", len(loaded.bad), split, where, rows
        )
    return loaded.tasks


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


def _fitting(
    env: EnvironmentConfig, codec: Codec, split: str, tasks: Sequence[Task]
) -> tuple[Task, ...]:
    data = env.config.data
    where = f" of {env.name}" if env.name else ""

    contexts = ContextWriter(codec)

    def length(task: Task) -> int:
        return len(contexts.opening(task, announced(task)))

    fitting, overlong = split_overlong(tasks, length, data.max_prompt_length)
    if overlong and not data.filter_overlong_prompts:
        raise DataError(
            f"{len(overlong)} {split} prompts{where} have more than data.max_prompt_length="
            f"{data.max_prompt_length} tokens (the first is {overlong[0].id}); raise the limit "
            "or set data.filter_overlong_prompts=true"
        )
    if not fitting:
        raise DataError(
            f"every {split} prompt{where} has more than data.max_prompt_length="
            f"{data.max_prompt_length} tokens; raise the limit"
        )
    return tuple(fitting)
