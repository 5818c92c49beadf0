"""File and network rules that a process puts on itself, for where namespaces are denied."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

from agent_r1.sandbox.guest import linux

_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read files, list folders."""
_RIGHTS = (13, 13, 14, 15, 15, 16)
"""How many file rights each version of the interface knows."""
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_KEPT = 100
"""Lowest number of the descriptor: past those that a program's start closes."""
_TCP = 0b11
_SCOPES = 0b11
"""Abstract unix sockets and signals stay within the program."""


def version() -> int:
    """Of the kernel's interface; raises :class:`OSError` where there is none."""
    return linux.syscall("landlock_create_ruleset", 0, 0, 1)


def make_rules(readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of the rules: nothing is reachable but what is named."""
    known = min(version(), 6)
    everything = (1 << _RIGHTS[known - 1]) - 1
    fields = [everything, _TCP if known >= 4 else 0, _SCOPES if known >= 6 else 0]
    size = 8 if known < 4 else 16 if known < 6 else 24
    attributes = ctypes.create_string_buffer(struct.pack("QQQ", *fields))
    rules = linux.syscall("landlock_create_ruleset", attributes, size, 0)
    for paths, access in ((readable, _READ), (writable, everything)):
        for path in paths:
            _allow(rules, path, access & everything)
    kept = fcntl.fcntl(rules, fcntl.F_DUPFD_CLOEXEC, _KEPT)
    os.close(rules)
    return kept


def _allow(rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        access &= _FILE_ONLY
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
    linux.syscall("landlock_add_rule", rules, 1, rule, 0)
    os.close(descriptor)


def obey(rules: int) -> None:
    """Hold this process and all its children to ``rules``, for good."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.syscall("landlock_restrict_self", rules, 0)
    os.close(rules)
