"""Settings as they are given, made one tree: known keys, in layers, mistakes in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from agent_r1.config.ignored import IGNORED, REFUSED, REPLACED_VALUES, lookup, renamed
from agent_r1.config.keys import leaf_above, leaves, nearest_key, sections
from agent_r1.config.section import Section
from agent_r1.errors import ConfigError

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Source:
    """Settings from one place, flat: dotted key → value as YAML made it."""

    name: str
    values: Mapping[str, Any]


def joined(before: Any, value: Any) -> Any:
    """A mapping that is set in two places holds the entries of both, later ones first."""
    if not (isinstance(before, Mapping) and isinstance(value, Mapping) and value):
        return value
    return {**before, **{name: joined(before.get(name), each) for name, each in value.items()}}


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
class Reading:
    """Turns flat sources into layers of known keys and collects what is wrong with them."""

    root: type[Section]
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    """Settings whose value is unknown, because what was given is wrong."""

    def settle(self, root: type[S], sources: Iterable[Source]) -> S:
        """The tree of all sources, with defaults in place of what is wrong.

        Raises:
            ConfigError: a rule of a whole section is broken.
        """
        merged = _merge([root().model_dump(mode="json"), *(self.layer(s) for s in sources)])
        try:
            return root.model_validate(merged)
        except ValidationError as error:
            wrong = self.explain(error, merged)
            self.problems += wrong.values()
            self.wrong |= set(wrong)
            if not set(wrong) <= set(leaves(root)):  # a rule of a section, not of one setting
                raise_all(self.problems)
        for key in wrong:
            _put(merged, key, leaves(root)[key].default)
        return root.model_validate(merged)

    def doubts(self, problem: str) -> bool:
        """Whether ``problem`` may only exist because a default stands for a wrong value."""
        return any(key in problem for key in self.wrong)

    def layer(self, source: Source) -> dict[str, Any]:
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
            f"a reference of the form ${{other.key}} cannot be resolved: {one_line(error)}"
        ) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def shown(value: Any) -> str:
    """``value`` as it would be written in YAML, on one line and not too long."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def raise_all(problems: Sequence[str]) -> None:
    """Raise all of them as one :class:`ConfigError`, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} mistakes:\n{listed}")
