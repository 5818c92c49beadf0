"""Names to functions, open to packages that are not ours.

A name is either registered (by us, or by a user with a decorator) or a dotted path such as
``my_package.my_module:my_function``, which needs no registration at all.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agent_r1.errors import ConfigError, RegistryError

if TYPE_CHECKING:
    from agent_r1.algorithms.episodes import AdvantageResult
    from agent_r1.algorithms.losses import PolicyLossTerms

Result = TypeVar("Result")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Registry(Generic[Result]):
    """A named set of functions of one kind.

    ``builtin`` lists the modules whose import registers our own functions; they are
    imported at the first look-up, so that a registry costs nothing to import.
    """

    def __init__(self, kind: str, builtin: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._builtin = builtin
        self._functions: dict[str, Callable[..., Result]] = {}

    def register(self, *names: str) -> Callable[[Decorated], Decorated]:
        """Decorator: make a function selectable by ``names`` (the first is canonical).

        Raises:
            RegistryError: a name is taken by another function.
        """

        def decorate(function: Decorated) -> Decorated:
            for name in names:
                holder = self._functions.get(name)
                if holder is not None and _identity(holder) != _identity(function):
                    raise RegistryError(
                        f"{self.kind} {name!r} is already {_identity(holder)}; "
                        "register yours under another name"
                    )
                self._functions[name] = function
            return function

        return decorate

    def names(self) -> tuple[str, ...]:
        """Every registered name, sorted."""
        self._load_builtin()
        return tuple(sorted(self._functions))

    def resolve(self, name: str) -> Callable[..., Result]:
        """The function of a registered name or of a dotted path.

        Raises:
            RegistryError: nothing of that name; the message names the nearest one.
        """
        self._load_builtin()
        function = self._functions.get(name)
        if function is not None:
            return function
        if ":" in name or "." in name:
            return self._import(name)
        near = get_close_matches(name, self._functions, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RegistryError(
            f"no {self.kind} is called {name!r}; {hint}known: {', '.join(self.names())}; "
            "a function of your own is named by its path, 'package.module:function'"
        )

    def _import(self, path: str) -> Callable[..., Result]:
        module_name, _, attribute = path.rpartition(":" if ":" in path else ".")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            if error.name is not None and not module_name.startswith(error.name):
                raise
            raise RegistryError(f"{self.kind} {path!r}: {error}; is it installed?") from error
        except AttributeError as error:
            raise RegistryError(f"{self.kind} {path!r}: {error}") from error
        if not callable(found):
            raise RegistryError(f"{self.kind} {path!r} is a {type(found).__name__}, not a function")
        function: Callable[..., Result] = found
        return function

    def _load_builtin(self) -> None:
        for module in self._builtin:
            importlib.import_module(module)


def bind(
    function: Callable[..., Result],
    options: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> Callable[..., Result]:
    """Fix a function's keyword-only options.

    ``options`` were written for this very function, so one that it does not take is an
    error. ``shared`` are settings that several functions read (``gamma``, ``clip_ratio``);
    those that this one does not take are dropped.

    Raises:
        ConfigError: an entry of ``options`` is no option of the function.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    chosen = dict(options or {})
    for key in chosen:
        if key not in known and not takes_any:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known)}"
            raise ConfigError(f"{function.__name__} has no option {key!r}; {hint}")
    defaults = {k: v for k, v in (shared or {}).items() if takes_any or k in known}
    return functools.partial(function, **{**defaults, **chosen})


def _identity(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


ADVANTAGES: Registry[AdvantageResult] = Registry(
    "advantage estimator", ("agent_r1.algorithms.advantages", "agent_r1.algorithms.turns")
)
POLICY_LOSSES: Registry[PolicyLossTerms] = Registry("policy loss", ("agent_r1.algorithms.losses",))

register_advantage = ADVANTAGES.register
register_policy_loss = POLICY_LOSSES.register
resolve_advantage = ADVANTAGES.resolve
resolve_policy_loss = POLICY_LOSSES.resolve
