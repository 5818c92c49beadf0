"""User ids of the host for programs, none of them shared with another executor.

As root each slot runs its programs under a user id of its own. Inside namespaces that is
an additional protection; without them it is the only one, because a slot ends the rest with
``kill(-1)``, which reaches every process of that user on the host. So a tier without
namespaces takes a block of ids that no other tier of any process has, and holds it through
a name in the abstract socket name space, which the kernel frees however the holder ends.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from agent_r1.errors import SandboxUnavailable

_BASE: Final = 1_900_000_000
"""In a range of user ids that nobody allots."""
_SHARED: Final = 65536
"""How many ids, from the base, tiers with namespaces use, all of them the same ones."""
_BLOCKS: Final = 1024
_BLOCK: Final = 4096
_SMALL_BLOCK: Final = 256
_LEAST: Final = 2048


@dataclass(frozen=True, slots=True)
class Ids:
    """``count`` user ids from ``first``; a block is held until :meth:`release`."""

    first: int
    count: int
    lock: socket.socket | None = None

    def release(self) -> None:
        """Let others have the block."""
        if self.lock is not None:
            self.lock.close()


def shared() -> Ids | None:
    """The ids that are mapped into namespaces; ``None`` where only our own id can be used."""
    found = _available()
    if found is None:
        return None
    first, count = found
    return Ids(first, min(count // 2, _SHARED))


def reserve() -> Ids | None:
    """A block for one tier without namespaces; ``None`` where only our own id can be used.

    Raises:
        SandboxUnavailable: every block is taken.
    """
    found = _available()
    if found is None:
        return None
    first, count = found
    skipped = min(count // 2, _SHARED)
    start = first + skipped
    size = min(_BLOCK, max(_SMALL_BLOCK, (count - skipped) // 16))
    busy = _users()
    for begin in range(start, first + count - size + 1, size):
        lock = _take(begin)
        if lock is None:
            continue
        if not any(begin <= user < begin + size for user in busy):
            return Ids(begin, size, lock)
        lock.close()
    raise SandboxUnavailable(
        f"every block of {size} user ids from {start} is taken by other executors: close one, "
        "or use isolation='strict', which needs none"
    )


def _available() -> tuple[int, int] | None:
    """First and number of the ids that this process may give to programs."""
    if os.geteuid() != 0:
        return None
    try:
        with open("/proc/self/uid_map") as file:
            extents = [[int(field) for field in line.split()] for line in file]
    except OSError:
        return None
    wanted = _SHARED + _BLOCKS * _BLOCK
    for first, _, count in extents:
        if first <= _BASE and first + count >= _BASE + wanted:
            return _BASE, wanted
    first, _, count = max(extents, key=lambda extent: extent[2])
    share = min(count // 2, wanted)  # inside a container: the upper half of its ids
    return (first + count - share, share) if share >= _LEAST else None


def _take(first: int) -> socket.socket | None:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0agent-r1-user-ids-{first}")
    except OSError:
        lock.close()
        return None
    return lock


def _users() -> set[int]:
    """Who runs a process now: what an executor left that was just killed, say."""
    users = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                users.add(os.stat(f"/proc/{name}").st_uid)
            except OSError:
                continue
    return users
