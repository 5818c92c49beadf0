"""The environments of a run with several: each the run's settings and what its entry changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent_r1.config.checks import problems_of
from agent_r1.config.keys import leaf_above
from agent_r1.config.reading import Reading, Source, flat, raise_all, shown
from agent_r1.config.schema import Config
from agent_r1.errors import ConfigError
from agent_r1.registry import nearest

OWN = ("tool.", "reward.", "data.")
"""What an entry may set otherwise than the run."""

OF_THE_RUN = (
    "data.train_batch_size",
    "data.shuffle",
    "data.seed",
    "data.env_key",
    "data.curriculum.",
)
"""Settings below these that the run has once."""

_ARGUMENTS = {
    "tool.env": ("tool.env_kwargs",),
    "reward.name": ("reward.kwargs",),
    "data.train_files": ("data.generator_kwargs",),
    "data.val_files": ("data.val_generator_kwargs",),
}
"""Arguments belong to what is named beside them and are not inherited by another."""


@dataclass(frozen=True, slots=True)
class EnvironmentConfig:
    """One environment of a run. ``name`` is empty in a run with one.

    ``config`` is the run's configuration as this environment sees it. In an entry of ``envs``
    its ``data.train_files`` and ``data.val_files`` are those that the entry itself names;
    tasks of the run's files belong to it when their column ``data.env_key`` says so.
    """

    name: str
    config: Config
    weight: float | None = None


def environment_configs(config: Config) -> tuple[EnvironmentConfig, ...]:
    """The environments of a run, at least one.

    Raises:
        ConfigError: lists every mistake in ``envs``, each with the entry it is in.
    """
    found, problems = read_environments(config)
    raise_all(problems)
    return found


def environment_named(config: Config, name: str | None) -> EnvironmentConfig:
    """The entry ``name`` of ``envs``; without a name that of a run with one.

    Raises:
        ConfigError: there is no such entry, or several and no name; or as
            :func:`environment_configs`.
    """
    envs = environment_configs(config)
    known = [each.name for each in envs]
    if name is None:
        if len(envs) == 1:
            return envs[0]
        raise ConfigError(
            f"envs has {', '.join(known)}, and this works in one of them; choose it with --env NAME"
        )
    if not config.envs:
        raise ConfigError(f"--env {name}: this configuration has no envs; leave --env out")
    if name not in known:
        raise ConfigError(f"envs has no {name!r}{nearest(name, known)}; it has {', '.join(known)}")
    return envs[known.index(name)]


def read_environments(config: Config) -> tuple[tuple[EnvironmentConfig, ...], list[str]]:
    """The environments of a run, and what is wrong with their entries."""
    if not config.envs:
        return (EnvironmentConfig("", config),), []
    problems: list[str] = []
    found = []
    for name, entry in config.envs.items():
        made, wrong = _read_entry(config, name, entry)
        found.append(made)
        problems += wrong
    without = [each.name for each in found if each.weight is None]
    if without and len(without) < len(found):
        problems.append(
            f"envs: {', '.join(without)} without a weight beside others that have one; give every "
            "entry a weight, or none (then each weighs as many as it has tasks)"
        )
    return tuple(found), problems


def _read_entry(
    config: Config, name: str, entry: Mapping[str, Any]
) -> tuple[EnvironmentConfig, list[str]]:
    where = f"envs.{name}"
    given = dict(flat(entry, Config))
    weight = given.pop("weight", None)
    reading = Reading(Config)
    reading.problems += _entry_problems(name, weight, given)
    values = {key: value for key, value in given.items() if not _of_the_run(key)}
    base = dict(flat(_inherited(config, values).model_dump(mode="json"), Config))
    made = reading.settle(Config, [Source("the run", base), Source(where, values)])
    of_the_run = set(problems_of(config))
    combined = [p for p in problems_of(made) if p not in of_the_run and not reading.doubts(p)]
    problems = [*reading.problems, *reading.remarks, *combined, *_too_long(config, made)]
    usable = float(weight) if _is_weight(weight) else None
    return EnvironmentConfig(name, made, usable), [
        problem if where in problem else f"{where}: {problem}" for problem in problems
    ]


def _inherited(config: Config, values: Mapping[str, Any]) -> Config:
    """What an entry starts from: the run without its files and without others' arguments."""
    changes: dict[str, dict[str, Any]] = {
        "data": {"train_files": (), "val_files": ()},
        "reward": {},
        "tool": {},
    }
    for key, arguments in _ARGUMENTS.items():
        section, _, field = key.partition(".")
        before = getattr(getattr(config, section), field)
        if key in values and values[key] != before:
            for argument in arguments:
                changes[section][argument.partition(".")[2]] = {}
    copies = {
        name: getattr(config, name).model_copy(update=update) for name, update in changes.items()
    }
    return config.model_copy(update={"envs": {}, **copies})


def _entry_problems(name: str, weight: Any, given: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[\w-]+", name):
        yield (
            f"envs.{name}: a name of letters, digits, '_' and '-' is expected, as it becomes part "
            "of the names of metrics"
        )
    if weight is not None and not _is_weight(weight):
        yield f"envs.{name}.weight={shown(weight)} is not a number above 0"
    for key, value in given.items():
        if _of_the_run(key):
            yield (
                f"envs.{name}.{key}={shown(value)}: the run has this once; set {key} outside of "
                "envs (an entry has weight and keys of tool, reward and data)"
            )


def _of_the_run(key: str) -> bool:
    """Whether ``key`` is a setting, and none that an entry may change."""
    if leaf_above(key) is None:
        return False
    return not key.startswith(OWN) or key.startswith(OF_THE_RUN)


def _is_weight(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _too_long(config: Config, made: Config) -> Iterator[str]:
    for key in ("max_prompt_length", "max_response_length"):
        most, asked = getattr(config.data, key), getattr(made.data, key)
        if asked > most:
            yield (
                f"data.{key}={asked} is above the run's data.{key}={most}, for which the context "
                "window is laid out; raise the run's"
            )
