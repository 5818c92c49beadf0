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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from agent_r1.config.checks import problems_of, remarks_on
from agent_r1.config.ignored import IGNORED, REFUSED, REPLACED_VALUES, lookup, renamed
from agent_r1.config.keys import leaf_above, leaves, nearest_key, sections
from agent_r1.config.schema import Config
from agent_r1.config.section import Section
from agent_r1.errors import ConfigError

OVERRIDES_VARIABLE = "AGENT_R1_OVERRIDES"
"""Overrides for every command of a shell: separated by white space, quoted as in a shell."""

S = TypeVar("S", bound=Section)


class ConfigWarning(UserWarning):
    """A setting is accepted and has no effect, or an effect that is easily overlooked."""


def load_config(
    file: Path | str | Section | None = None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration of a run: of a file, or over a configuration that there is.

    Raises:
        ConfigError: lists every unknown key, wrong type and impossible combination.

    Warns with :class:`ConfigWarning` about names and values that have no effect.
    """
    reading, config = _read(Config, file, overrides, environ)
    combined = [p for p in problems_of(config) if not reading.doubts(p)]
    _raise([*reading.problems, *combined])
    _warn([*reading.remarks, *remarks_on(config)])
    return config


def load_section(
    root: type[S],
    file: Path | str | Section | None = None,
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] = os.environ,
) -> S:
    """Like :func:`load_config` for any tree of sections, without the cross-section checks."""
    reading, config = _read(root, file, overrides, environ)
    _raise(reading.problems)
    _warn(reading.remarks)
    return config


def _read(
    root: type[S],
    file: Path | str | Section | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
) -> tuple[_Reading, S]:
    """The tree, with defaults in place of what is wrong, and what is wrong."""
    reading = _Reading(root)
    layers = [reading.layer(s) for s in _sources(file, overrides, environ, root, reading.problems)]
    merged = _merge([root().model_dump(mode="json"), *layers])
    try:
        return reading, root.model_validate(merged)
    except ValidationError as error:
        wrong = reading.explain(error, merged)
        reading.problems += wrong.values()
        reading.wrong |= set(wrong)
        if not set(wrong) <= set(leaves(root)):  # a rule of a section, not of one setting
            _raise(reading.problems)
    for key in wrong:
        _put(merged, key, leaves(root)[key].default)
    return reading, root.model_validate(merged)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as they are written on a command line."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def to_yaml(config: Section) -> str:
    """The whole tree as YAML that :func:`load_config` reads back to an equal tree."""
    dumped = config.model_dump(mode="json")
    return yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True, width=100)


def require(config: Section, **remedies: str) -> None:
    """Check that settings without a usable default were given.

    ``remedies`` maps a key, with ``__`` for the dot, to an example of what to write.

    Raises:
        ConfigError: names each missing setting and the example.
    """
    missing = []
    for name, example in remedies.items():
        key = name.replace("__", ".")
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value:
            missing.append(f"{key} is not set; give it as {key}={example}")
    _raise(missing)


@dataclass(frozen=True, slots=True)
class _Source:
    """Settings from one place, flat: dotted key → value as YAML made it."""

    name: str
    values: Mapping[str, Any]


def _sources(
    file: Path | str | Section | None,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    root: type[Section],
    problems: list[str],
) -> Iterator[_Source]:
    """Each place that gives settings; words that are none are added to ``problems``."""
    if isinstance(file, Section):
        yield _Source("the configuration", dict(flat(file.model_dump(mode="json"), root)))
    elif file is not None:
        yield _Source(str(file), dict(flat(_read_file(Path(file)), root)))
    words = _words(environ.get(OVERRIDES_VARIABLE, ""))
    if words:
        yield _Source(
            OVERRIDES_VARIABLE, _parse_overrides(words, OVERRIDES_VARIABLE, root, problems)
        )
    if overrides:
        yield _Source("command line", _parse_overrides(overrides, "command line", root, problems))


def _read_file(file: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(file.expanduser())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {file}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} cannot be read: {error}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} is not valid YAML: {_one_line(error)}") from error
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
            given[name] = _joined(given.get(name), value)
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
            f'into single quotes, as in {key}=\'["a", "b"]\'. {_one_line(error)}'
        ) from error


def _joined(before: Any, value: Any) -> Any:
    """A mapping that is set in two places holds the entries of both, later ones first."""
    if not (isinstance(before, Mapping) and isinstance(value, Mapping) and value):
        return value
    return {**before, **{name: _joined(before.get(name), each) for name, each in value.items()}}


def _plain(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def flat(
    tree: Mapping[str, Any], root: type[Section], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values.

    Mappings are descended into but for empty ones and those that are the value of a setting,
    whose own keys may contain dots (``tool.tool_kwargs={'file.py:Name': ...}``).
    """
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaf = leaves(root).get(key)
        if isinstance(value, Mapping) and value and not (leaf and leaf.is_mapping):
            yield from flat(value, root, f"{key}.")
        else:
            yield key, value


@dataclass(slots=True)
class _Reading:
    """Turns flat sources into layers of known keys and collects what is wrong with them."""

    root: type[Section]
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    """Settings whose value is unknown, because what was given is wrong."""

    def doubts(self, problem: str) -> bool:
        """Whether ``problem`` may only exist because a default stands for a wrong value."""
        return any(key in problem for key in self.wrong)

    def layer(self, source: _Source) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for key, value in source.values.items():
            target = self._target(key, value, source.name)
            if target is not None:
                self.origins[target] = source.name
                _put(known, target, self._value(target, value))
        return known

    def _target(self, key: str, value: Any, origin: str) -> str | None:
        """The key to set, or ``None`` for one that is ignored or wrong."""
        leaf = leaf_above(key, self.root)
        if leaf is not None:
            return key
        ours = renamed(key)
        if ours is not None and leaf_above(ours, self.root):
            return ours
        refused = lookup(REFUSED, key)
        if refused and value is not None:
            self.problems.append(f"{key}={shown(value)} ({origin}) is not supported: {refused}")
        elif refused:
            return None
        elif (reason := lookup(IGNORED, key)) is not None:
            self.remarks.append(f"{key}={shown(value)} ({origin}) has no effect: {reason}")
        elif key not in sections(self.root) or value not in ({}, None):
            self.problems.append(self._unknown(key, value, origin))
        return None

    def _unknown(self, key: str, value: Any, origin: str) -> str:
        if key in sections(self.root):
            return (
                f"{key}={shown(value)} ({origin}): {key} is a section; set one of its keys, "
                f"such as {next(k for k in leaves(self.root) if k.startswith(key + '.'))}"
            )
        near = nearest_key(key, self.root)
        self.wrong |= {near} if near else set()
        advice = f"did you mean {near}?" if near else "'agent-r1 config' lists all keys"
        return f"unknown key {key}={shown(value)} ({origin}): {advice}"

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, str) and (key, value) in REPLACED_VALUES:
            replacement, reason = REPLACED_VALUES[key, value]
            self.remarks.append(f"{key}={value} is read as {replacement}: {reason}")
            return replacement
        return value

    def explain(self, error: ValidationError, merged: Mapping[str, Any]) -> dict[str, str]:
        """One line per wrong value by its key, from pydantic's findings."""
        lines: dict[str, str] = {}
        values = dict(flat(merged, self.root))
        for found in error.errors():
            key = ".".join(str(part) for part in found["loc"])
            while key and key not in leaves(self.root):
                key = key.rpartition(".")[0]
            leaf = leaves(self.root).get(key)
            if leaf is None or key not in values:
                lines[str(found["loc"])] = f"{found['loc']}: {found['msg']}"
                continue
            origin = self.origins.get(key, "default")
            lines[key] = (
                f"{key}={shown(values[key])} ({origin}) is not {leaf.expected}; "
                f"the default is {shown(leaf.default)}. {leaf.description}"
            )
        return lines


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = tree.setdefault(parent, {})
        if not isinstance(below, dict):
            below = tree[parent] = {}
        tree = below
    tree[last] = value


def _merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers win key by key; ``${other.key}`` is replaced by that key's final value."""
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(dict(layer)) for layer in layers))
        container = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"a reference of the form ${{other.key}} cannot be resolved: {_one_line(error)}"
        ) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def shown(value: Any) -> str:
    """``value`` as it would be written in YAML, on one line and not too long."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _raise(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(
            "\n".join([f"{len(problems)} mistakes:", *(f"  - {p}" for p in problems)])
        )


def _warn(remarks: Iterable[str], emit: Callable[..., None] = warnings.warn) -> None:
    for remark in dict.fromkeys(remarks):
        emit(remark, ConfigWarning, stacklevel=4)
