"""Gymnasium's spaces in words: observations written, actions read.

Supported as observations: ``Discrete``, ``MultiDiscrete``, ``MultiBinary``, ``Text``, boxes of
at most 64 numbers, and tuples and dicts of these. As actions: ``Discrete``, ``MultiDiscrete``,
``MultiBinary``, ``Text`` and boxes of at most 64 numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from agent_r1.errors import ConfigError

_MOST = 64
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def check_observed(space: Any) -> None:
    """Raise :class:`ConfigError` where :func:`written` cannot say a value of this space."""
    name = type(space).__name__
    if name in ("Tuple", "Dict"):
        parts = space.spaces.values() if name == "Dict" else space.spaces
        for part in parts:
            check_observed(part)
    elif name not in ("Discrete", "MultiDiscrete", "MultiBinary", "Text") and not _small_box(space):
        raise ConfigError(
            f"observations of {space} have no form in words; name a function that writes them in "
            "tool.env_kwargs.observe=file.py:function, called with the observation and the "
            "environment"
        )


def check_acted(space: Any) -> None:
    """Raise :class:`ConfigError` where :func:`read` cannot make an action of this space."""
    name = type(space).__name__
    if name not in ("Discrete", "MultiDiscrete", "MultiBinary", "Text") and not _small_box(space):
        raise ConfigError(
            f"actions of {space} have no form in words; name a function that reads them in "
            "tool.env_kwargs.act=file.py:function, called with the text and the environment"
        )


def written(space: Any, value: Any) -> str:
    """``value`` of ``space`` in words."""
    name = type(space).__name__
    if name == "Tuple":
        return ", ".join(written(s, v) for s, v in zip(space.spaces, value, strict=True))
    if name == "Dict":
        return "\n".join(f"{key}: {written(space[key], value[key])}" for key in space.spaces)
    if hasattr(value, "ravel"):
        return " ".join(_number(v) for v in value.ravel().tolist())
    return str(value)


def offered(space: Any, names: Sequence[str]) -> str:
    """What may be written as an action, for the model to read."""
    if names:
        return "one of: " + ", ".join(names)
    kind = type(space).__name__
    if kind == "Discrete":
        return f"a whole number from {int(space.start)} to {int(space.start + space.n - 1)}"
    if kind == "Text":
        return f"a text of {space.min_length} to {space.max_length} characters"
    return f"{math.prod(space.shape)} numbers, separated by blanks"


def read(space: Any, text: str, names: Sequence[str]) -> Any:
    """The action of ``space`` that ``text`` says, or None where it says none."""
    if names:
        wanted = text.casefold()
        found = [i for i, name in enumerate(names) if name.casefold() == wanted]
        return int(space.start) + found[0] if found else None
    if type(space).__name__ == "Text":
        return text if space.contains(text) else None
    return _read_numbers(space, text)


def _read_numbers(space: Any, text: str) -> Any:
    import numpy as np

    numbers = [float(n) for n in _NUMBER.findall(text)]
    if _NUMBER.sub("", text).strip(" ,;[]()\n\t"):
        return None
    if type(space).__name__ == "Discrete":
        if len(numbers) != 1 or not numbers[0].is_integer():
            return None
        return int(numbers[0]) if space.contains(int(numbers[0])) else None
    if len(numbers) != math.prod(space.shape):
        return None
    whole = np.issubdtype(space.dtype, np.integer)
    if whole and not all(n.is_integer() for n in numbers):
        return None
    value = np.array(numbers).reshape(space.shape).astype(space.dtype)
    return value if space.contains(value) else None


def _small_box(space: Any) -> bool:
    return type(space).__name__ == "Box" and math.prod(space.shape) <= _MOST


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
