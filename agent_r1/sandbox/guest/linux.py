"""The few system calls that Python's standard library does not offer, through ctypes.

Each raises :class:`OSError` that names the call, so that a refusal by the kernel can be
reported as "this primitive is missing" and not as a number.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_SECCOMP: Final = 22
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

# name: (x86-64, aarch64)
_SYSCALLS: Final = {
    "clone": (56, 220),
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_ARCHITECTURES: Final = ("x86_64", "aarch64")
_CAPABILITY_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_fork = ctypes.PyDLL(None, use_errno=True).fork


def architecture() -> int:
    """Column of the system call tables for this machine."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(f"the sandbox knows no system call numbers of {machine!r}")
    return _ARCHITECTURES.index(machine)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: object) -> int:
    """Make a call of the table above."""
    number = _SYSCALLS[name][architecture()]
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wide), name)


def clone(flags: int) -> int:
    """``fork`` into new namespaces: 0 in the child, the child's pid in the parent.

    None of Python's fork hooks run, which is fine for a process of one thread.
    """
    return syscall("clone", flags | 17, 0, 0, 0, 0)


def fork() -> int:
    """``fork`` without Python's after-fork hooks, which cost more than the fork itself.

    Right for a process of one thread that leaves the hooks' work (new random state, the
    identity of the main thread) to the child; a program's own ``os.fork`` runs them.
    """
    return _check(_fork(), "fork")


def unshare(flags: int) -> None:
    """Move this process into new namespaces of the kinds in ``flags``."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system of ``kind`` with the options in ``data``."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {kind or source} on {target}")


def umount(target: str) -> None:
    """Detach the mount at ``target`` now, even while something holds it."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def bind(source: str, target: str, *, read_only: bool = True, devices: bool = False) -> None:
    """Bind ``source`` (with what is mounted below) on ``target``: never set-uid there."""
    mount(source, target, "", MS_BIND | MS_REC)
    wanted = MS_NOSUID | (MS_RDONLY if read_only else 0) | (0 if devices else MS_NODEV)
    try:
        _set_flags_recursively(target, wanted)
    except OSError:  # before Linux 5.12: the topmost mount only, keeping its locked flags
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY | 0x1C00)
        mount("", target, "", MS_BIND | MS_REMOUNT | wanted | kept)


def _set_flags_recursively(target: str, flags: int) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", flags & 0xF, 0, 0, 0))
    recursive = 0x8000
    syscall("mount_setattr", -100, ctypes.c_char_p(target.encode()), recursive, attributes, 32)


def pivot_root(new: str) -> None:
    """Make ``new`` (a mount point) the root and let go of the old one."""
    os.chdir(new)
    syscall("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    umount(".")
    os.chdir("/")


def prctl(option: int, value: int, extra: object = 0) -> None:
    """Change an attribute of this process, with one or two arguments."""
    third = ctypes.c_ulong(extra) if isinstance(extra, int) else extra
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), third, zero, zero), f"prctl({option})")


def raise_loopback() -> None:
    """Bring ``lo`` of this network namespace up. Needs to be its owner."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def shared_memory() -> int:
    """Bytes of shared memory on the whole machine: files in memory and shared mappings."""
    answer = ctypes.create_string_buffer(128)
    _check(_libc.sysinfo(answer), "sysinfo")
    pages: int = struct.unpack_from("Q", answer, 48)[0]
    unit: int = struct.unpack_from("I", answer, 104)[0]
    return pages * unit


def drop_bounding_set() -> None:
    """Nothing that is executed from here on can gain a capability."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last capability of this kernel
            return


def drop_capabilities() -> None:
    """Give up every capability of this process."""
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    syscall("capset", header, data)


def install_seccomp(program: bytes) -> None:
    """Filter system calls of this process and all that it starts, for good."""
    instructions = ctypes.create_string_buffer(program)
    count = len(program) // 8
    fprog = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", count, ctypes.addressof(instructions))
    )
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, 2, fprog)
