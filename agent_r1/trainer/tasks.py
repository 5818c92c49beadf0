"""The tasks of a run, by environment: read, assigned, and those kept whose prompts fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from agent_r1.config.environments import EnvironmentConfig, environment_configs
from agent_r1.config.schema import Config
from agent_r1.data.sources import load_configured, split_overlong
from agent_r1.data.split import by_environment
from agent_r1.errors import DataError
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
    found = by_environment(config, split, lambda own, entry: _read(own, split, seed, entry))
    if not measured:
        return found
    envs = environment_configs(config)
    return {
        env.name: _fitting(env, codec, split, found[env.name]) for env in envs if env.name in found
    }


def _read(config: Config, split: str, seed: int, entry: str) -> tuple[Task, ...]:
    """What the files of a split hold; bad rows are an error, or are told."""
    loaded = load_configured(config.data, split, seed)
    if not config.data.skip_bad_rows:
        return loaded.strict()
    if loaded.bad:
        rows = "\n".join(f"  {row}" for row in loaded.bad)
        where = f" of envs.{entry}" if entry else ""
        _LOG.warning(
            "%d %s rows%s are no tasks and are left out:\n%s", len(loaded.bad), split, where, rows
        )
    return loaded.tasks


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
