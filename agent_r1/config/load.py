"""From files, the environment and the command line to one checked :class:`Config`.

Precedence, lowest first: the defaults of the schema, the YAML file (which states only what
differs), the environment variable ``AGENT_R1_OVERRIDES``, the command line. Overrides are
``dotted.key=value`` with the value parsed as YAML, so that a list of strings can be given
through a shell: ``actor_rollout_ref.rollout.stop='["</code>"]'``.

Every mistake is reported at once, each with its key, its value, where it came from and what
to write instead, before anything heavy is imported.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agent_r1.config.checks import problems_of, remarks_on
from agent_r1.config.environments import read_environments
from agent_r1.config.reading import Reading, S, Source, flat, joined, one_line, raise_all
from agent_r1.config.schema import Config
from agent_r1.config.section import Section
from agent_r1.errors import ConfigError

OVERRIDES_VARIABLE = "AGENT_R1_OVERRIDES"
"""Overrides for every command of a shell: separated by white space, quoted as in a shell."""


Needs: TypeAlias = Callable[[Any], Mapping[str, str]]
LookUp: TypeAlias = Callable[[Any], Iterable[str]]


def _nothing(config: Section) -> dict[str, str]:
    return {}


class ConfigWarning(UserWarning):
    """A setting is accepted and has no effect, or an effect that is easily overlooked."""


def load_config(
    file: Path | str | Section | None = None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    needs: Needs = _nothing,
    look_up: LookUp = _nothing,
) -> Config:
    """The configuration of a run: of a file, or over a configuration that there is.

    ``needs`` and ``look_up`` say of a configuration what else belongs to its mistakes. The first
    maps each setting that must be given, with ``__`` for the dot, to an example of what to write;
    the second names what does not exist, and is asked only where there is a mistake already.

    Raises:
        ConfigError: lists every unknown key, wrong type and impossible combination.

    Warns with :class:`ConfigWarning` about names and values that have no effect.
    """
    reading, config = _read(Config, file, overrides, environ)
    combined = [p for p in problems_of(config) if not reading.doubts(p)]
    problems = [*reading.problems, *combined, *read_environments(config)[1]]
    raise_all(_with_missing(problems, reading, config, needs, look_up))
    _warn([*reading.remarks, *remarks_on(config)])
    return config


def load_section(
    root: type[S],
    file: Path | str | Section | None = None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    needs: Needs = _nothing,
    look_up: LookUp = _nothing,
) -> S:
    """Like :func:`load_config` for any tree of sections, without the cross-section checks."""
    reading, config = _read(root, file, overrides, environ)
    raise_all(_with_missing(reading.problems, reading, config, needs, look_up))
    _warn(reading.remarks)
    return config


def _with_missing(
    problems: Sequence[str], reading: Reading, config: Any, needs: Needs, look_up: LookUp
) -> list[str]:
    """``problems``, what must be given and is not, and if there are any, what does not exist."""
    missing = [p for p in _missing(config, needs(config)) if not reading.doubts(p)]
    found = [*problems, *missing]
    return [*found, *look_up(config)] if found else []


def _read(
    root: type[S],
    file: Path | str | Section | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> tuple[Reading, S]:
    """The tree, with defaults in place of what is wrong, and what is wrong."""
    reading = Reading(root)
    sources = _sources(file, overrides, environ, root, reading.problems)
    return reading, reading.settle(root, sources)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as they are written on a command line."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def to_yaml(config: Section) -> str:
    """The whole tree as YAML that :func:`load_config` reads back to an equal tree."""
    dumped = config.model_dump(mode="json")
    return yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, width=100)


def _missing(config: Section, remedies: Mapping[str, str]) -> Iterator[str]:
    for name, example in remedies.items():
        key = name.replace("__", ".")
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value:
            yield f"{key} is not set; give it as {key}={example}"


def _sources(
    file: Path | str | Section | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    root: type[Section],
    problems: list[str],
) -> Iterator[Source]:
    """Each place that gives settings; words that are none are added to ``problems``."""
    if isinstance(file, Section):
        yield Source("the configuration", dict(flat(file.model_dump(mode="json"), root)))
    elif file is not None:
        yield Source(str(file), dict(flat(_read_file(Path(file)), root)))
    words = _words(environ.get(OVERRIDES_VARIABLE, ""))
    if words:
        yield Source(
            OVERRIDES_VARIABLE, _parse_overrides(words, OVERRIDES_VARIABLE, root, problems)
        )
    if overrides:
        yield Source("command line", _parse_overrides(overrides, "command line", root, problems))


def _read_file(file: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(file.expanduser())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} cannot be read: {error}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} is not valid YAML: {one_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{file} must hold a mapping of sections such as 'trainer:'")
    return _plain(loaded)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{OVERRIDES_VARIABLE}={text!r} has an unclosed quote") from error


def _parse_overrides(
    overrides: Iterable[str], origin: str, root: type[Section], problems: list[str]
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for word in overrides:
        try:
            settings = _parse_override(word, origin, root)
        except ConfigError as error:
            problems.append(str(error))
            continue
        for name, value in settings:
            given[name] = joined(given.get(name), value)
    return given


def _parse_override(word: str, origin: str, root: type[Section]) -> list[tuple[str, Any]]:
    key, equals, _ = word.partition("=")
    if key.startswith("~"):
        raise ConfigError(f"{word!r} ({origin}): keys cannot be removed; set {key[1:]}=null")
    if not equals or not key.strip("+"):
        raise ConfigError(f"{word!r} ({origin}) is no setting; write dotted.key=value")
    try:
        return list(flat(_plain(OmegaConf.from_dotlist([word.lstrip("+")])), root))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{word!r} ({origin}) is not valid YAML after the '='; in a shell put the value "
            f'into single quotes, as in {key}=\'["a", "b"]\'. {one_line(error)}'
        ) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _warn(remarks: Iterable[str], emit: Callable[..., None] = warnings.warn) -> None:
    for remark in dict.fromkeys(remarks):
        emit(remark, ConfigWarning, stacklevel=4)
