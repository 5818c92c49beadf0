"""The tree of settings as a flat list of dotted names, for messages and documentation."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from agent_r1.config.schema import Config
from agent_r1.config.section import Section


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting: its dotted name, what it accepts, its default and its documentation."""

    key: str
    expected: str
    """In words, such as ``a whole number of at least 1, or null``."""
    default: Any
    description: str
    is_mapping: bool
    """The value is a free mapping, so that keys below it are the user's own."""


@cache
def leaves(root: type[Section] = Config) -> dict[str, Leaf]:
    """Every setting below ``root`` by its dotted name, in the order of the schema."""
    return {leaf.key: leaf for leaf in _walk(root(), "")}


def sections(root: type[Section] = Config) -> dict[str, str]:
    """Every section below ``root`` by its dotted name, with its documentation."""
    return dict(_sections(root, ""))


def leaf_above(key: str, root: type[Section] = Config) -> Leaf | None:
    """The setting that ``key`` names, or the free mapping that it reaches into."""
    known = leaves(root)
    if key in known:
        return known[key]
    parts = key.split(".")
    above = (known.get(".".join(parts[:i])) for i in range(len(parts) - 1, 0, -1))
    return next((leaf for leaf in above if leaf and leaf.is_mapping), None)


def nearest_key(key: str, root: type[Section] = Config) -> str | None:
    """The known name that a mistyped or incomplete ``key`` most likely means."""
    for known in leaves(root):
        if known.endswith("." + key) or key.startswith(known + "."):
            return known
    last = key.rpartition(".")[2]

    def likeness(known: str) -> float:
        known_last = known.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        return 0.5 * whole + 0.5 * difflib.SequenceMatcher(None, last, known_last).ratio()

    best = max(leaves(root), key=likeness)
    return best if likeness(best) >= 0.55 else None


def _walk(section: Section, prefix: str) -> Iterator[Leaf]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield Leaf(
                key=prefix + name,
                expected=_field_in_words(field),
                default=int(value) if isinstance(value, ByteSize) else value,
                description=" ".join((field.description or "").split()),
                is_mapping=isinstance(value, dict),
            )


def _sections(section: type[Section], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield prefix + name, (kind.__doc__ or "").strip()
            yield from _sections(kind, f"{prefix}{name}.")


def _field_in_words(field: FieldInfo) -> str:
    return _in_words(field.annotation, field.metadata)


def _in_words(kind: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _in_words(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if origin in (Union, UnionType):
        words = [_in_words(a, metadata) for a in arguments if a is not NoneType]
        return " or ".join(words) + (", or null" if NoneType in arguments else "")
    if origin is tuple:
        return _sequence_in_words(arguments)
    if origin is dict:
        return "a mapping"
    return _scalar_in_words(kind, metadata)


def _sequence_in_words(arguments: tuple[Any, ...]) -> str:
    kind = {str: "strings", int: "whole numbers", float: "numbers"}[arguments[0]]
    return f"a list of {kind}" if arguments[-1] is ... else f"a list of {len(arguments)} {kind}"


def _scalar_in_words(kind: Any, metadata: list[Any] | tuple[Any, ...]) -> str:
    if kind is ByteSize:
        return "a number of bytes, such as 512MiB"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    flat = [m for item in metadata for m in getattr(item, "metadata", [item])]
    bounds = " and ".join(filter(None, (_bound_in_words(m) for m in flat)))
    return f"{words} {bounds}".strip()


def _bound_in_words(bound: Any) -> str:
    if isinstance(bound, Ge):
        return f"of at least {bound.ge}"
    if isinstance(bound, Gt):
        return f"above {bound.gt}"
    if isinstance(bound, Le):
        return f"of at most {bound.le}"
    if isinstance(bound, Lt):
        return f"below {bound.lt}"
    return "that is not empty" if isinstance(bound, MinLen) else ""
