"""Control groups, where this process may make them: hard limits of a whole process tree.

Resource limits hold per process; a group holds for a program and all its children
together. Version 1 needs root; version 2 needs a group that was delegated to us. Without
either, init samples the tree's memory instead (see :mod:`.guest.init`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_OVERHEAD: Final = 24 << 20
"""Memory of a slot's own processes, granted on top of a program's limit."""
_SPARE_PROCESSES: Final = 8
_PREFIX: Final = "agent-r1"
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Controllers:
    """Where groups of ours can be made: one folder of version 2, or one per controller."""

    version: int
    memory: Path
    pids: Path | None

    def folders(self) -> tuple[Path, ...]:
        both = {self.memory, self.pids or self.memory}
        return tuple(both)


def find() -> Controllers | None:
    """The groups of this process if a child group with a memory limit can be made there."""
    mounted, own = mounts(), dict(own_groups())
    for found in (_version_one(mounted, own), _version_two(mounted, own)):
        if found is not None and _usable(found):
            _sweep(found)
            return found
    return None


def mounts() -> list[tuple[str, str, set[str]]]:
    """Type, place and options of every mounted file system."""
    rows = []
    with contextlib.suppress(OSError), open("/proc/self/mounts", errors="surrogateescape") as file:
        for line in file:
            _, where, kind, options, *_ = line.split()
            rows.append((kind, where, set(options.split(","))))
    return rows


def own_groups() -> list[tuple[str, str]]:
    """Controller (none for version 2) and group of this process, below where it is mounted."""
    pairs = []
    with contextlib.suppress(OSError), open("/proc/self/cgroup", errors="surrogateescape") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            pairs += [(name, path) for name in names.split(",")]
    return pairs


def _version_one(
    mounted: list[tuple[str, str, set[str]]], own: dict[str, str]
) -> Controllers | None:
    found: dict[str, Path] = {}
    for kind, where, options in mounted:
        for name in ("memory", "pids"):
            if kind == "cgroup" and name in options and name in own:
                path = Path(where + own[name])
                found[name] = path if path.is_dir() else Path(where)
    if "memory" not in found:
        return None
    return Controllers(1, found["memory"], found.get("pids"))


def _version_two(
    mounted: list[tuple[str, str, set[str]]], own: dict[str, str]
) -> Controllers | None:
    for kind, where, _ in mounted:
        if kind == "cgroup2" and "" in own:
            path = Path(where + own[""])
            with contextlib.suppress(OSError):
                active = (path / "cgroup.subtree_control").read_text().split()
                if "memory" not in active:
                    (path / "cgroup.subtree_control").write_text("+memory +pids")
                return Controllers(2, path, path)
    return None


def _usable(controllers: Controllers) -> bool:
    probe = controllers.memory / f"{_PREFIX}-{os.getpid()}-probe"
    try:
        probe.mkdir()
        (probe / _limit_file(controllers)).write_text(str(1 << 30))
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir()
    return True


def _limit_file(controllers: Controllers) -> str:
    return "memory.limit_in_bytes" if controllers.version == 1 else "memory.max"


def _sweep(controllers: Controllers) -> None:
    """Remove groups of executors that were killed together with their supervisors."""
    for folder in controllers.folders():
        for group in stale(folder):
            remove(group)


def new_name() -> str:
    """A name for a group that no other one has and that tells whose it is."""
    return f"{_PREFIX}-{os.getpid()}-{next(_serial)}"


def stale(folder: Path) -> Iterator[Path]:
    """Groups in ``folder`` whose executor has ended."""
    for group in folder.glob(f"{_PREFIX}-*-*"):
        pid = group.name.split("-")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            yield group


def remove(folder: Path) -> bool:
    """Remove a group and its children; what still has processes stays. Whether it is gone."""
    for parent, children, _ in os.walk(folder, topdown=False):
        for name in children:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(parent, name))
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not folder.exists()


class TierGroup:
    """The folder of one tier; each of its slots has a group below it."""

    def __init__(self, controllers: Controllers) -> None:
        self._controllers = controllers
        name = new_name()
        self.folders = [str(folder / name) for folder in controllers.folders()]
        for folder in self.folders:
            os.mkdir(folder)
        if controllers.version == 2:
            Path(self.folders[0], "cgroup.subtree_control").write_text("+memory +pids")

    def add(self, index: int, pids: list[int]) -> SlotGroup:
        """A group for a slot, joined by its processes ``pids`` and all that they fork."""
        folders = [Path(folder, str(index)) for folder in self.folders]
        for folder in folders:
            folder.mkdir(exist_ok=True)
            for pid in pids:
                (folder / "cgroup.procs").write_text(str(pid))
        memory = next(f for f in folders if f.parent.parent == self._controllers.memory)
        parent = self._controllers.pids
        counted = next((f for f in folders if f.parent.parent == parent), None)
        return SlotGroup(self._controllers.version, memory, counted)

    def close(self) -> bool:
        """Remove what is empty, as the supervisor does too. Whether nothing is left."""
        return not [folder for folder in self.folders if not remove(Path(folder))]


class SlotGroup:
    """Limits of one slot, changed only when a request asks for other ones."""

    def __init__(self, version: int, memory: Path, pids: Path | None) -> None:
        self._version = version
        self._memory = memory
        self._pids = pids
        self._limits = (0, 0)
        name = "memory.events" if version == 2 else "memory.oom_control"
        self._counts = -1  # asked at every run, so it is kept open
        with contextlib.suppress(OSError):
            self._counts = os.open(memory / name, os.O_RDONLY | os.O_CLOEXEC)
        self._kills = 0
        self._kills = self._count_kills()

    @property
    def unified(self) -> Path | None:
        """With version 2: the folder below which all other groups of the slot must lie."""
        return self._memory if self._version == 2 else None

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Hold the slot's whole tree to these.

        Raises :class:`OSError`: ``EBUSY`` where the tree holds more memory already and version 1
        refuses the limit (version 2 ends what is above it), otherwise the group is gone.
        """
        if self._limits == (memory_bytes, processes):
            return
        total = str(memory_bytes + _OVERHEAD)
        if self._version == 2:
            (self._memory / "memory.max").write_text(total)
            with contextlib.suppress(OSError):
                (self._memory / "memory.swap.max").write_text("0")
        else:
            self._limit_version_one(total)
        if self._pids is not None:
            (self._pids / "pids.max").write_text(str(processes + _SPARE_PROCESSES))
        self._limits = (memory_bytes, processes)

    def _limit_version_one(self, total: str) -> None:
        """With swap counted where the kernel does; each limit must stay below the other."""
        plain = self._memory / "memory.limit_in_bytes"
        swapped = self._memory / "memory.memsw.limit_in_bytes"
        order = [plain, swapped] if swapped.exists() else [plain]
        try:
            for file in order:
                file.write_text(total)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise
            for file in reversed(order):
                file.write_text(total)

    def _count_kills(self) -> int:
        with contextlib.suppress(OSError):
            data = os.pread(self._counts, 4096, 0)
            _, name, rest = data.rpartition(b"oom_kill ")
            return int(rest.partition(b"\n")[0]) if name else 0
        return self._kills

    def ran_out(self) -> bool:
        """Whether the kernel killed for memory since the last time this was asked."""
        before, self._kills = self._kills, self._count_kills()
        return self._kills > before

    def forget(self) -> None:
        """The slot has ended: nothing is counted any more."""
        if self._counts >= 0:
            os.close(self._counts)
            self._counts = -1

    def close(self) -> bool:
        """Remove the slot's groups if they are empty by now."""
        left = [f for f in {self._memory, self._pids or self._memory} if not remove(f)]
        return not left
