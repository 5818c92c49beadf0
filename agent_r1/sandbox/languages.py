"""The languages besides Python: one table of how a source is compiled and run.

A row is usable where its binaries are installed on the host; their folders are then
visible, read-only, to the programs of the tools tier. Nothing is downloaded at run time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from agent_r1.errors import LanguageUnavailable
from agent_r1.sandbox import layout

_SYSTEM: Final = ("/usr", "/etc/alternatives")
_SETTINGS: Final = ("/etc/perl", "/etc/php", "/etc/R", "/etc/ruby", "/etc/mono", "/etc/fonts")


@dataclass(frozen=True, slots=True)
class Language:
    """How to handle one language. ``{memory}`` is half of the memory limit, in MiB."""

    source: str
    run: tuple[str, ...]
    compile: tuple[str, ...] = ()
    package: str = ""
    """A package that this interpreter must have."""
    environment: Mapping[str, str] = field(default_factory=dict)
    maps_much: bool = True
    """Its programs, or those that they start, map far more memory than they use."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A language whose binaries were found: commands with absolute paths."""

    source: str
    compile: tuple[str, ...]
    run: tuple[str, ...]
    environment: Mapping[str, str]
    maps_much: bool


_SHARED_FOLDERS: Final = ("/", "/opt", "/srv", "/usr", "/usr/local", "/var", "/var/lib", "/snap")
_LAYOUT: Final = {
    *("bin", "lib", "lib32", "lib64", "libexec", "sbin", "share", "include", "usr"),
    *("api", "conf", "doc", "docs", "etc", "jmods", "legal", "licenses", "man", "misc"),
    *("pkg", "plugins", "src", "test", "tools"),
}
"""Folders that an installation of one toolchain consists of."""
_PAPERS: Final = re.compile(
    r"^(AUTHORS|CHANGELOG|CONTRIBUT\w+|COPYING|COPYRIGHT|LICEN[CS]E|NOTICE|PATENTS|README|SECURITY"
    r"|THIRD.PARTY\w*|VERSION|build|codereview|components|go|install|manifest|release"
    r"|rust-installer-version)([.-]\w+)*$",
    re.IGNORECASE,
)
"""And the files beside them."""
_GO: Final = {"GOCACHE": "/tmp/go", "GOPATH": "/tmp/gopath", "GO111MODULE": "auto"}
_CPP: Final = ("g++", "-std=c++17", "-O2", "main.cpp")
_GO_BUILD: Final = ("go", "build", "-o", "main")
_JAR: Final = ("-cp", ".:*")
"""Libraries that came as files; assertions are on, as programs that test themselves expect."""
_JVM: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx{memory}m", "-Xss64m")
_JAVA: Final = ("java", *_JVM, *_JAR, "-ea", "Main")
_JAVAC: Final = ("javac", "-J-XX:+UseSerialGC", "-J-XX:TieredStopAtLevel=1", "-J-Xmx{memory}m")
_PYTEST: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider")

LANGUAGES: Final[Mapping[str, Language]] = {
    "bash": Language("main.sh", ("bash", "main.sh")),
    "c": Language(
        "main.c", ("./main",), ("gcc", "-O2", "main.c", "-o", "main", "-lm"), maps_much=False
    ),
    "cpp": Language("main.cpp", ("./main",), (*_CPP, "-o", "main"), maps_much=False),
    "csharp": Language("main.cs", ("mono", "main.exe"), ("mcs", "-out:main.exe", "main.cs")),
    "cuda": Language("main.cu", ("./main",), ("nvcc", "main.cu", "-o", "main")),
    "D_ut": Language("main.d", ("./main",), ("dmd", "-unittest", "-main", "main.d", "-of=main")),
    "go": Language("main.go", ("./main",), (*_GO_BUILD, "main.go"), environment=_GO),
    "go_test": Language("main_test.go", ("go", "test", "main_test.go"), environment=_GO),
    "java": Language("Main.java", _JAVA, (*_JAVAC, *_JAR, "Main.java")),
    "jest": Language("main.test.js", ("jest", "--rootDir", ".", "main.test.js")),
    "julia": Language("main.jl", ("julia", "--startup-file=no", "main.jl")),
    "kotlin_script": Language("main.kts", ("kotlin", "main.kts")),
    "lean": Language("main.lean", ("lean", "main.lean")),
    "lua": Language("main.lua", ("lua", "main.lua"), maps_much=False),
    "nodejs": Language("main.js", ("node", "main.js")),
    "perl": Language("main.pl", ("perl", "main.pl"), maps_much=False),
    "php": Language("main.php", ("php", "main.php"), maps_much=False),
    "pytest": Language(
        "test_main.py",
        (sys.executable, *_PYTEST, "test_main.py"),
        package="pytest",
        maps_much=False,
    ),
    "R": Language("main.R", ("Rscript", "--vanilla", "main.R")),
    "racket": Language("main.rkt", ("racket", "main.rkt")),
    "ruby": Language("main.rb", ("ruby", "main.rb")),
    "rust": Language(
        "main.rs", ("./main",), ("rustc", "-O", "main.rs", "-o", "main"), maps_much=False
    ),
    "scala": Language("main.scala", ("scala", "Main"), ("scalac", "main.scala")),
    "swift": Language("main.swift", ("./main",), ("swiftc", "main.swift", "-o", "main")),
    "typescript": Language("main.ts", ("tsx", "main.ts")),
    "verilog": Language("main.v", ("vvp", "main.out"), ("iverilog", "-o", "main.out", "main.v")),
}


def known_languages() -> tuple[str, ...]:
    """Every name that a request may use, installed or not."""
    return ("python", *sorted(LANGUAGES))


def available_languages() -> tuple[str, ...]:
    """The names whose toolchain is installed on this host."""
    found = ["python"]
    for name in sorted(LANGUAGES):
        try:
            find_toolchain(name)
        except LanguageUnavailable:
            continue
        found.append(name)
    return tuple(found)


@cache
def find_toolchain(name: str) -> Toolchain:
    """Resolve the commands of ``name`` on this host.

    Raises:
        LanguageUnavailable: names the missing binary, or the known languages.
    """
    language = LANGUAGES.get(name)
    if language is None:
        known = ", ".join(known_languages())
        raise LanguageUnavailable(f"unknown language {name!r}; known: {known}")
    if language.package and find_spec(language.package) is None:
        raise LanguageUnavailable(
            f"language {name!r} needs the package {language.package!r}, which is not installed"
        )
    folders = [os.path.dirname(sys.executable), "/usr/bin", "/bin"]
    commands = []
    for command in (language.compile, language.run):
        if command and not command[0].startswith("."):
            binary = _resolve(name, command[0])
            folders.insert(0, os.path.dirname(binary))
            command = (binary, *command[1:])
        commands.append(command)
    environment = layout.environment() | dict(language.environment)
    environment["PATH"] = ":".join(dict.fromkeys(folders))
    return Toolchain(language.source, commands[0], commands[1], environment, language.maps_much)


def _resolve(language: str, binary: str) -> str:
    """The absolute path of ``binary``, past the stand-ins that toolchain managers install."""
    path = shutil.which(binary)
    if path is None:
        raise LanguageUnavailable(f"language {language!r} needs {binary!r}, which is not installed")
    if os.path.basename(os.path.realpath(path)) == "rustup":
        answer = subprocess.run(
            [path, "--print", "sysroot"], capture_output=True, text=True, timeout=30, check=False
        )
        path = os.path.join(answer.stdout.strip(), "bin", binary)
        if not os.path.exists(path):
            raise LanguageUnavailable(f"language {language!r} needs a default rust toolchain")
    return path


def toolchain_paths() -> tuple[str, ...]:
    """Files and folders of the host that the installed toolchains need to see."""
    paths = [path for path in (*_SYSTEM, *_SETTINGS) if os.path.exists(path)]
    if os.path.isdir("/etc"):
        paths += [f"/etc/{name}" for name in os.listdir("/etc") if name.startswith("java-")]
    for name in LANGUAGES:
        try:
            toolchain = find_toolchain(name)
        except LanguageUnavailable:
            continue
        for command in (toolchain.compile, toolchain.run):
            if command and os.path.isabs(command[0]):
                paths += _home_of(command[0])
    return tuple(dict.fromkeys(paths))


def _home_of(binary: str) -> list[str]:
    """What to show of a toolchain outside of ``/usr``: its folder if that holds nothing else."""
    found = []
    for path in (binary, os.path.realpath(binary)):
        folder = Path(path).parent
        if not path.startswith("/usr/") and path != sys.executable:
            alone = folder.name == "bin" and holds_one_toolchain(folder.parent)
            found.append(str(folder.parent) if alone else path)
    return found


def holds_one_toolchain(home: Path) -> bool:
    """Whether a folder with ``bin`` in it is an installation of its own.

    ``/opt`` and ``~/.local`` have a ``bin`` and much besides, also secrets. So a folder in which
    people keep things is none, nor is one with anything that no installation has.
    """
    people = ("/home", "/root", os.path.expanduser("~"))
    if str(home) in _SHARED_FOLDERS or str(home) in people or str(home.parent) in ("/", "/home"):
        return False
    if str(home.parent) in people or home.parent.parent == Path("/home"):
        return False
    try:
        entries = list(home.iterdir())
    except OSError:
        return False
    return all(
        entry.name in _LAYOUT if entry.is_dir() else bool(_PAPERS.match(entry.name))
        for entry in entries
    )
