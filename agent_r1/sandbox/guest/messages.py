"""The records exchanged between host and sandbox, packed with :mod:`struct`.

Host to zygote: ``SLOT`` with the slot's channel. Host to a slot's init: ``RUN`` or
``STOP``, and before the first ``RUN`` of a session maybe ``FREEZER`` with the files of a
control group. Init to host: ``HELLO`` once, then one ``DONE`` per ``RUN``. A program
never holds a descriptor of these channels, so it cannot speak on them.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HELLO: Final = b"H"
SLOT: Final = b"S"
RUN: Final = b"R"
STOP: Final = b"K"
FREEZER: Final = b"F"
DONE: Final = b"D"

KEEP_FILES: Final = 1
"""Leave the working directory for the next run of the same slot (compile, then run)."""
FETCH: Final = 2
"""The last descriptor receives the files that the job asks for."""
SESSION: Final = 4
"""Keep the interpreter for further runs, stopped in between."""
STDIN: Final = 16
"""A descriptor holds the standard input; without it that is empty."""

EXITED: Final = 0
TIMED_OUT: Final = 1
STOPPED: Final = 2
MEMORY: Final = 3
NEVER_STARTED: Final = 4

OUT_OF_MEMORY: Final = signal.SIGSTKFLT
"""With this a Python program ends that did not catch a ``MemoryError``; the kernel and other
programs have no use for it."""

_RUN = struct.Struct("<cdQQI")
_DONE = struct.Struct("<cBBidd")
_SLOT = struct.Struct("<cI")
_MAX: Final = 4096


_FILES: Final = b"agent-r1 files\n"
_ENTRY = struct.Struct("<IQ")
_END: Final = _ENTRY.pack(0, 0)
_PIECE: Final = 1 << 20


def write_files(target: int, files: Iterable[tuple[bytes, int]], limit: int) -> None:
    """Names and contents, each with its length; an entry without a name ends the list.

    ``files`` are names and descriptors to read; all contents together are cut at ``limit``
    bytes. Whatever their size, no more than a piece of one is in memory here.
    """
    at = os.pwrite(target, _FILES, 0)
    for name, source in files:
        head, size = at, 0
        at += _ENTRY.size + os.pwrite(target, name, at + _ENTRY.size)
        while piece := os.read(source, min(_PIECE, limit - size)):
            size += _write_all(target, piece, at + size)
        os.pwrite(target, _ENTRY.pack(len(name), size), head)
        at += size
        limit -= size
    os.pwrite(target, _END, at)


def _write_all(target: int, data: bytes, at: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)
    return done


def unpack_files(data: bytes, limit: int) -> dict[bytes, bytes] | None:
    """The inverse, for data that nobody vouches for: None if it is anything else.

    Whatever the data, time and memory are bounded by their length. ``limit`` is the largest
    number of entries.
    """
    found: dict[bytes, bytes] = {}
    at = len(_FILES)
    if data[:at] != _FILES:
        return None
    while len(data) - at >= _ENTRY.size:
        name_length, size = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if not name_length:
            return found if not size and at == len(data) else None
        middle, end = at + name_length, at + name_length + size
        if end > len(data) or len(found) == limit:
            return None
        found[data[at:middle]] = data[middle:end]
        at = end
    return None


@dataclass(frozen=True, slots=True)
class Order:
    """What init must know of a run; everything else is read by the program's process."""

    wall_seconds: float
    memory_bytes: int
    file_bytes: int
    flags: int

    def pack(self) -> bytes:
        return _RUN.pack(RUN, self.wall_seconds, self.memory_bytes, self.file_bytes, self.flags)

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        return cls(*_RUN.unpack(data)[1:])


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended. ``wait_status`` is the kernel's; ``alive``: the session goes on."""

    reason: int
    alive: bool
    wait_status: int
    seconds: float
    cpu_seconds: float

    def pack(self) -> bytes:
        return _DONE.pack(
            DONE, self.reason, self.alive, self.wait_status, self.seconds, self.cpu_seconds
        )

    @classmethod
    def unpack(cls, data: bytes) -> Report:
        _, reason, alive, status, seconds, cpu = _DONE.unpack(data)
        return cls(reason, bool(alive), status, seconds, cpu)


def pack_slot(index: int) -> bytes:
    """Ask a zygote for a slot that uses the user ids of ``index``."""
    return _SLOT.pack(SLOT, index)


def unpack_slot(data: bytes) -> int:
    """The index of :func:`pack_slot`."""
    return int(_SLOT.unpack(data)[1])


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; an empty message means that the other side is gone."""
    space = socket.CMSG_SPACE(8 * array.array("i").itemsize)
    data, ancillary, _, _ = channel.recvmsg(_MAX, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    return data, list(descriptors)
