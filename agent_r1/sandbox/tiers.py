"""Which prepared interpreter a program should be forked from.

A tier is a set of libraries imported ahead of time. The choice is a guess from the
program's text; a wrong one costs the time of an import and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_STANDARD: Final = (
    *("abc", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "functools", "heapq", "itertools", "json", "math", "operator"),
    *("random", "re", "statistics", "string", "time", "traceback", "typing"),
)


@dataclass(frozen=True, slots=True)
class Tier:
    """``huge_pages``: the heap is large enough that forking it by 2 MiB pages is cheaper."""

    name: str
    modules: tuple[str, ...]
    huge_pages: bool = False


PLAIN: Final = Tier("plain", _STANDARD)
NUMPY: Final = Tier("numpy", (*_STANDARD, "numpy", "numpy.random", "numpy.linalg"), True)
SYMPY: Final = Tier("sympy", (*_STANDARD, "sympy"), True)
MATH: Final = Tier("math", (*_STANDARD, "numpy", "numpy.random", "numpy.linalg", "sympy"), True)
EVERYTHING: Final = Tier(
    "everything",
    (
        *MATH.modules,
        *("scipy", "scipy.optimize", "scipy.stats", "scipy.linalg", "scipy.integrate"),
        *("scipy.special", "scipy.sparse", "scipy.interpolate", "pandas"),
    ),
    True,
)
TOOLS: Final = Tier("tools", ())
"""For programs that are executed and not interpreted here."""
ALL: Final = (PLAIN, NUMPY, SYMPY, MATH, EVERYTHING, TOOLS)
_HEAVY: Final = ("scipy", "pandas", "sklearn", "statsmodels", "networkx", "matplotlib")


def choose(code: str) -> Tier:
    """The tier whose imports cover what ``code`` seems to import."""
    if any(name in code for name in _HEAVY):
        return EVERYTHING
    if "sympy" in code:
        return MATH if "numpy" in code else SYMPY
    return NUMPY if "numpy" in code else PLAIN
