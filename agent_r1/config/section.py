"""What every section of the configuration has in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt


class Section(BaseModel):
    """A frozen group of settings that knows no key but its own.

    The text under each field is its documentation: it is what ``docs/configuration.md``
    and ``agent-r1 config`` show, so it names the unit and what special values mean.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )


def _one_or_many(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, dict) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
"""A list of strings; a single string is a list of one, null and empty text an empty list."""


def _unlimited_to_none(value: Any) -> Any:
    return None if value == -1 else value


CountOrAll = Annotated[PositiveInt | None, BeforeValidator(_unlimited_to_none)]
"""A number, or null for all; -1 is read as null."""


def _no_to_none_word(value: Any) -> Any:
    return "none" if value is None or value is False else value


NoneWord = BeforeValidator(_no_to_none_word)
"""For choices that contain the word ``none``: YAML's ``null`` and ``false`` mean it too."""

OffWord = BeforeValidator(lambda value: "off" if value is None or value is False else value)
"""The same for choices that contain the word ``off``, which YAML reads as ``false``."""

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
