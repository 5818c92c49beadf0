"""How much memory the processes of a slot hold, sampled by its init.

Where a control group counts, this only tells early and in plain words what the kernel holds
hard. Where none does, this is the limit of the tree: beside private memory it counts shared
anonymous pages, what was swapped out, page tables, and what sockets can buffer.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Final

from agent_r1.sandbox.guest import linux, processes

_PRIVATE: Final = (b"RssAnon:",)
_ALL: Final = (b"RssAnon:", b"RssShmem:", b"VmSwap:", b"VmPTE:")
_PROPORTIONAL: Final = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
_SHARED: Final = b"/dev/zero (deleted)"
"""What the kernel calls a mapping of shared anonymous memory."""
_SOCKET_BYTES: Final = 256 << 10
"""A socket's default buffer, as a program's sockets cannot have larger ones."""
_DATAGRAM_BYTES: Final = 10 * _SOCKET_BYTES
"""A queue of datagrams may hold one full buffer of each of so many senders."""
_EXACT_SECONDS: Final = 0.5
"""Looking at every page takes time that a program can prolong; then the rough sum counts."""


@dataclass(slots=True)
class Meter:
    """``counted``: a control group holds the limit. ``confined``: namespaces and a box."""

    box: str
    counted: bool
    confined: bool
    _base: int = 0
    _shared: int = 0
    _sockets: int = 0

    def __post_init__(self) -> None:
        """Measure what every process of the slot is forked with: the memory of this one."""
        self._base = _sum("/proc/self/status", self._fields)

    @property
    def _fields(self) -> tuple[bytes, ...]:
        return _PRIVATE if self.counted else _ALL

    def begin(self) -> None:
        """A program begins: what is there now is not its own."""
        if self.counted or not self.confined:
            return
        self._shared = linux.shared_memory() - self._files()
        self._sockets = _count_sockets()

    def exceeds(self, limit: int) -> bool:
        """Whether the processes of the slot and its files hold more than ``limit`` bytes."""
        files = self._files()
        tree = processes.listing()
        fixed = files + self._buffers()
        rough = fixed + sum(self._held(process) for process in tree)
        if self.counted:
            return rough > limit
        if rough > limit and fixed + self._exact(tree, limit - fixed) > limit:
            return True
        return self.confined and self._hides_more_than(limit, files, tree)

    def _files(self) -> int:
        if not self.confined:
            return 0
        used = os.statvfs(self.box)
        return (used.f_blocks - used.f_bfree) * used.f_frsize

    def _held(self, process: int) -> int:
        """Pages that a process shares with another count for both."""
        return max(0, _sum(f"{processes.PROC}/{process}/status", self._fields) - self._base)

    def _exact(self, tree: list[int], limit: int) -> int:
        """The same with every page counted once; a process that cannot be looked into fully."""
        total = 0
        deadline = time.monotonic() + _EXACT_SECONDS
        for process in tree:
            pages = 0
            if time.monotonic() < deadline:
                pages = _sum(f"{processes.PROC}/{process}/smaps_rollup", _PROPORTIONAL)
            tables = _sum(f"{processes.PROC}/{process}/status", (b"VmPTE:",))
            total += min(self._held(process), pages + tables) if pages else self._held(process)
            if total > limit:
                break
        return total

    def _buffers(self) -> int:
        """What the sockets of this slot's network can hold at most."""
        if self.counted or not self.confined:
            return 0
        count = _count_sockets() - self._sockets
        if count <= 0:
            return 0
        return count * _SOCKET_BYTES + _count_datagram_sockets() * _DATAGRAM_BYTES

    def _hides_more_than(self, limit: int, files: int, tree: list[int]) -> bool:
        """Shared memory that no process has in its pages stays while any of it is mapped.

        The kernel tells its sum for the machine only, so a program is blamed when that has
        grown past its limit since it began and it has such a mapping.
        """
        if linux.shared_memory() - files - self._shared <= limit:
            return False
        return any(_maps_shared(process) for process in tree)


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    """Bytes in the lines of a file of ``/proc`` that begin so; 0 if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(names)) << 10
    return 0


def _maps_shared(process: int) -> bool:
    try:
        with open(f"{processes.PROC}/{process}/maps", "rb") as file:
            return any(line.rstrip().endswith(_SHARED) for line in file)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _count_sockets() -> int:
    with contextlib.suppress(OSError), open(f"{processes.PROC}/1/net/sockstat", "rb") as file:
        return int(file.readline().split()[2])
    return 0


def _count_datagram_sockets() -> int:
    """Unix sockets of the type of which each message may come from another sender.

    A line ends with a name that the program chose, and that may have line ends in it.
    """
    with contextlib.suppress(OSError), open(f"{processes.PROC}/1/net/unix", "rb") as file:
        return sum(line.split(None, 5)[4:5] == [b"0002"] for line in file)
    return 0
