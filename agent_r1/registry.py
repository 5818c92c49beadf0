"""Names for things that users bring: tools, environments, rewards, task generators.

A name in a configuration is looked up in this order: what was registered with the
decorator (the project's own entries are registered lazily, by path), the entry points of
installed packages, and finally the name itself read as a path, either ``package.module:Name``,
``package.module.Name`` or ``some/file.py:Name``. So a user needs no plug-in machinery to
try an idea, and a package that wants to offer a name can.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from agent_r1.errors import RegistryError

T = TypeVar("T")


class Registry(Generic[T]):
    """One kind of thing by name.

    ``builtin`` maps names to ``module:Attribute`` paths that are imported on first use.
    ``group`` is the entry-point group that other packages may add to. ``check`` says what
    is wrong with an object found by path (``None`` for nothing), so that a typo that
    happens to import is caught where it was written.
    """

    def __init__(
        self,
        kind: str,
        *,
        group: str | None = None,
        builtin: Mapping[str, str] | None = None,
        check: Callable[[Any], str | None] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(builtin or {})
        self._check = check
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that gives its object a name.

        Raises:
            RegistryError: the name is taken by something else. Defining the same thing
                again (a notebook cell, a reloaded module) replaces it.
        """

        def add(entry: T) -> T:
            old = self._entries.get(name)
            if (old is not None and _origin(old) != _origin(entry)) or (
                old is None and name in self._builtin and not self._is_builtin(name, entry)
            ):
                raise RegistryError(
                    f"the {self.kind} name {name!r} is taken by "
                    f"{self._builtin.get(name) or _origin(old)}; choose another"
                )
            self._entries[name] = self._checked(entry, name)
            return entry

        return add

    def names(self) -> list[str]:
        """Every name that needs no path, sorted."""
        return sorted({*self._entries, *self._builtin, *(e.name for e in self._entry_points())})

    def get(self, name: str) -> T:
        """Find the entry of this name.

        Raises:
            RegistryError: says what was tried, and which name is nearest.
        """
        if name in self._entries:
            return self._entries[name]
        if name in self._builtin:
            return self._checked(import_path(self._builtin[name]), name)
        for point in self._entry_points():
            if point.name == name:
                return self._checked(self._load(point), name)
        if is_path(name):
            return self._checked(import_path(name), name)
        raise self._unknown(name)

    def look_up(self, name: str) -> None:
        """Raise what :meth:`get` would raise, as far as that is known without importing."""
        if name in self.names():
            return
        if not is_path(name):
            raise self._unknown(name)
        find_path(name)

    def _unknown(self, name: str) -> RegistryError:
        return RegistryError(
            f"no {self.kind} is called {name!r}{nearest(name, self.names())}; known: "
            f"{', '.join(self.names()) or 'none'}; or give a path such as "
            "'package.module:Name' or 'file.py:Name'"
        )

    def _checked(self, entry: Any, name: str) -> T:
        problem = self._check(entry) if self._check else None
        if problem:
            raise RegistryError(f"{name!r} is no {self.kind}: {problem}")
        found: T = entry
        return found

    def _is_builtin(self, name: str, entry: Any) -> bool:
        return _origin(entry) == self._builtin[name].replace(":", ".")

    def _entry_points(self) -> list[Any]:
        return list(entry_points(group=self.group)) if self.group else []

    def _load(self, point: Any) -> Any:
        try:
            return point.load()
        except Exception as error:
            raise RegistryError(
                f"the {self.kind} {point.name!r} of an installed package cannot be loaded from "
                f"{point.value}: {type(error).__name__}: {error}"
            ) from error


def nearest(name: str, known: list[str]) -> str:
    """``", did you mean 'x'?"`` for the closest known name, else an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def is_path(name: str) -> bool:
    """Whether a name is meant as a path to import."""
    return ":" in name or "." in name


def find_path(path: str) -> None:
    """Raise the :class:`RegistryError` of :func:`import_path` if there is no such file or package.

    Nothing is imported, so what a package or a file holds is not looked at.
    """
    module, _ = _split(path)
    if module.endswith(".py"):
        _require_file(_absolute(module))
        return
    top = module.split(".")[0]
    if top and top not in sys.modules and importlib.util.find_spec(top) is None:
        raise _no_module(path, top)


def import_path(path: str) -> Any:
    """Import ``package.module:Name``, ``package.module.Name`` or ``file.py:Name``.

    Raises:
        RegistryError: names the part that could not be found. An exception *inside* the
            imported module is chained, with its own message.
    """
    module_name, attribute = _split(path)
    module = (
        _import_file(_absolute(module_name))
        if module_name.endswith(".py")
        else _import_module(module_name, path)
    )
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(module) if not n.startswith("_")]
            raise RegistryError(f"{module_name} has no {part!r}{nearest(part, public)}")
        found = getattr(found, part)
    return found


def _split(path: str) -> tuple[str, str]:
    module, colon, attribute = path.rpartition(":")
    if not colon:
        module, _, attribute = path.rpartition(".")
    if not module or not attribute:
        raise RegistryError(f"{path!r} is no path: write 'package.module:Name' or 'file.py:Name'")
    return module, attribute


def _import_module(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise _no_module(path, error.name) from error
        raise RegistryError(f"{path!r}: importing it failed: {error}") from error
    except Exception as error:
        raise RegistryError(
            f"{path!r}: importing it failed: {type(error).__name__}: {error}"
        ) from error


def _no_module(path: str, missing: str) -> RegistryError:
    return RegistryError(
        f"{path!r}: there is no module {missing!r}; is it installed, or is its folder missing from "
        f"PYTHONPATH? A file is given as {missing.split('.')[0]}.py:NAME"
    )


def _absolute(file: str) -> Path:
    return Path(file).expanduser().resolve()


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise RegistryError(f"there is no file {file}")


def _import_file(file: Path) -> Any:
    """Import a Python file once per absolute path, under a name that cannot collide."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    name = f"_agent_r1_file_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    _require_file(file)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RegistryError(f"{file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up while it loads
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RegistryError(
            f"{file}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    return module


def _origin(entry: object) -> str:
    module = getattr(entry, "__module__", None)
    return f"{module}.{getattr(entry, '__qualname__', repr(entry))}"
