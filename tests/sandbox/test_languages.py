"""The table of languages: what is installed runs, what is not is named."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_r1.errors import LanguageUnavailable
from agent_r1.sandbox import EmbeddedExecutor, Limits, RunRequest, RunStatus, languages
from agent_r1.sandbox.languages import (
    LANGUAGES,
    available_languages,
    find_toolchain,
    holds_one_toolchain,
    toolchain_paths,
)


@pytest.fixture(scope="module")
def executor() -> Iterator[EmbeddedExecutor]:
    with EmbeddedExecutor(workers=2) as executor:
        yield executor


def binaries(name: str) -> list[str]:
    """What a row of the table looks for on the host."""
    language = LANGUAGES[name]
    first = [command[0] for command in (language.compile, language.run) if command]
    return [word for word in first if not word.startswith(("./", sys.executable))]


@pytest.mark.parametrize("name", sorted(set(LANGUAGES) - {"pytest"}))
def test_a_missing_toolchain_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda binary: None)
    binary = binaries(name)[0]
    with pytest.raises(LanguageUnavailable, match=re.escape(f"{name!r} needs {binary!r}")):
        find_toolchain.__wrapped__(name)


def test_what_is_missing_is_refused_before_anything_starts(
    executor: EmbeddedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> languages.Toolchain:
        raise LanguageUnavailable(f"language {name!r} needs 'nvcc', which is not installed")

    monkeypatch.setattr("agent_r1.sandbox.jobs.find_toolchain", missing)
    with pytest.raises(LanguageUnavailable, match="'cuda' needs 'nvcc'"):
        executor.run(RunRequest(code="int main() {}", language="cuda"))


TESTS = """
import pytest

def test_good():
    assert 1 + 1 == 2

@pytest.mark.parametrize("x", [1, 2])
def test_some(x):
    assert x == 1
"""


def test_pytest_reports_each_failure(executor: EmbeddedExecutor) -> None:
    result = executor.run(RunRequest(code=TESTS, language="pytest", limits=Limits(wall_seconds=60)))
    assert (result.status, result.exit_code) == (RunStatus.ERROR, 1), result
    assert "1 failed, 2 passed" in result.stdout
    assert "test_main.py::test_some[2]" in result.stdout


def test_pytest_that_passes_succeeds(executor: EmbeddedExecutor) -> None:
    code = TESTS.replace("x == 1", "x in (1, 2)")
    result = executor.run(RunRequest(code=code, language="pytest", limits=Limits(wall_seconds=60)))
    assert (result.status, result.exit_code) == (RunStatus.SUCCESS, 0), result
    assert "3 passed" in result.stdout


CUDA = """
#include <cstdio>
__global__ void twice(int *x) { *x *= 2; }
int main() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    printf("%s\\n", error == cudaSuccess && count ? "device" : "no device");
}
"""


@pytest.mark.slow
def test_cuda_compiles_and_finds_no_device(executor: EmbeddedExecutor) -> None:
    """The host's devices are not there for programs, so only host code can run."""
    if "cuda" not in available_languages():
        pytest.skip("no CUDA compiler here")
    limits = Limits(wall_seconds=60, compile_seconds=300, memory_bytes=4 << 30)
    result = executor.run(RunRequest(code=CUDA, language="cuda", limits=limits))
    assert (result.status, result.stdout) == (RunStatus.SUCCESS, "no device\n"), result


def make(home: Path, *names: str) -> Path:
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return home


@pytest.mark.parametrize(
    ("names", "alone"),
    [
        (("bin/rustc", "lib/a.so", "share/doc/x"), True),
        (("bin/go", "pkg/x", "src/x", "api/x", "VERSION", "go.env", "LICENSE", "README.md"), True),
        (("bin/java", "jmods/x", "conf/x", "legal/x", "release"), True),
        (("bin/lua", "state/history"), False),
        (("bin/lua", "lib/x", "credentials.toml"), False),
        (("bin/lua", "lib/x", ".netrc"), False),
    ],
)
def test_a_folder_is_shown_only_if_it_is_one_toolchain(tmp_path, names, alone):
    assert holds_one_toolchain(make(tmp_path / "x", *names)) is alone


def test_folders_in_which_people_keep_things_are_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for home in (tmp_path / ".local", tmp_path):
        assert not holds_one_toolchain(make(home, "bin/lua"))
    for shared in ("/opt", "/usr/local", "/home/somebody", "/home/somebody/.local", "/srv"):
        assert not holds_one_toolchain(Path(shared))
    assert holds_one_toolchain(make(tmp_path / "go" / "1.22", "bin/go", "src/x"))


def test_a_binary_among_others_is_shown_alone(tmp_path, monkeypatch) -> None:
    home = make(tmp_path / ".local", "bin/lua", "share/keyrings/login")
    (home / "bin" / "lua").chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{home}/bin", prepend=":")
    find_toolchain.cache_clear()
    try:
        shown = toolchain_paths()
    finally:
        find_toolchain.cache_clear()
    assert f"{home}/bin/lua" in shown and str(home) not in shown


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr(languages, "find_spec", lambda name: None)
    find_toolchain.cache_clear()
    try:
        with pytest.raises(LanguageUnavailable, match="needs the package 'pytest'"):
            find_toolchain("pytest")
    finally:
        find_toolchain.cache_clear()
