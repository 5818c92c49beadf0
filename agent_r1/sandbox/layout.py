"""What of the host a program may read: the interpreter, its libraries, the toolchains."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

GUEST = str(Path(__file__).parent / "guest")
BOOTSTRAP = """
import sys, types
for name, path in ("agent_r1", "/"), ("agent_r1.sandbox", "/"), \
("agent_r1.sandbox.guest", "{guest}"):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from agent_r1.sandbox.guest.{module} import main
main()
"""
_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec")
_MERGED = ("/bin", "/lib", "/lib32", "/lib64")
_EXTRA = ("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")


def library_paths() -> list[str]:
    """The folders of installed packages that this interpreter imports from."""
    found = [*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]


def environment() -> dict[str, str]:
    """All that a program's environment holds."""
    return {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin",
        "HOME": "/sandbox/work",
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "MPLBACKEND": "Agg",
    }


def describe(extra: tuple[str, ...] = ()) -> dict[str, object]:
    """Binds, links and files of the root, as the guest's ``root.Layout`` takes them.

    ``extra`` are further files or folders of toolchains, visible at their own place.
    """
    base = sys.base_prefix
    binds = [*_SYSTEM, f"{base}/bin", f"{base}/lib", *library_paths(), *_EXTRA, *extra]
    links: list[tuple[str, str]] = []
    for path in _MERGED:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        else:
            binds.append(path)
    files: list[tuple[str, str]] = []
    if sys.prefix != base:
        real = os.path.realpath(sys.executable)
        if real == sys.executable:  # an environment with a copy of the interpreter
            binds.append(real)
        for path in dict.fromkeys((sys.executable, f"{sys.prefix}/bin/python3")):
            if path != real:
                links.append((path, real))
        settings = Path(sys.prefix, "pyvenv.cfg")
        files.append((str(settings), settings.read_text(encoding="utf-8")))
    return {
        "binds": _outermost([path for path in binds if os.path.exists(path)]),
        "links": links,
        "files": files,
        "guest": GUEST,
    }


def closed_folder() -> str | None:
    """A folder on the way to the interpreter that only its owner may enter, if there is one."""
    for start in (sys.base_prefix, sys.prefix, GUEST):
        for folder in (Path(start), *Path(start).parents):
            if not folder.stat().st_mode & 1:
                return str(folder)
    return None


def _outermost(paths: list[str]) -> list[str]:
    """Without duplicates and without paths that lie below another one."""
    chosen: list[str] = []
    for path in sorted(dict.fromkeys(paths)):
        if not any(path.startswith(parent + "/") for parent in chosen):
            chosen.append(path)
    return chosen
