"""The system call filter, assembled by hand for x86-64 and aarch64.

Known calls that a program has no business with are refused, calls newer than this table
do not exist, everything else is allowed. What is refused is what reaches beyond the
program's own tree (mounts, namespaces, tracing, key rings, kernel configuration), what
outlives it (System V and POSIX message queues, extended attributes) and what has been the
way out of many sandboxes (io_uring, bpf, userfaultfd, perf).
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from agent_r1.sandbox.guest import linux

_ABSENT: Final = -1
_NEWEST: Final = 450
"""Numbers above are calls that this table has not judged."""

# name: (x86-64, aarch64); answered "operation not permitted".
_REFUSED: Final = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "uselib": (134, _ABSENT),
    "ustat": (136, _ABSENT),
    "sysfs": (139, _ABSENT),
    "vhangup": (153, 58),
    "modify_ldt": (154, _ABSENT),
    "pivot_root": (155, 41),
    "_sysctl": (156, _ABSENT),
    "chroot": (161, 51),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, _ABSENT),
    "ioperm": (173, _ABSENT),
    "create_module": (174, _ABSENT),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "get_kernel_syms": (177, _ABSENT),
    "query_module": (178, _ABSENT),
    "quotactl": (179, 60),
    "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
    "clock_settime": (227, 112),
    "vserver": (236, _ABSENT),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "unshare": (272, 97),
    "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "clock_adjtime": (305, 266),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "sched_setattr": (314, 274),
    "seccomp": (317, 277),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "process_mrelease": (448, 448),
}

# Answered "no such call", so that libraries fall back to what they did before it existed.
_UNKNOWN: Final = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semtimedop": (220, 192),
    "io_setup": (206, 0),
    # A timer may send SIGCONT to a session that is stopped between its cells.
    "timer_create": (222, 107),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
    "landlock_create_ruleset": (444, 444),
    "memfd_secret": (447, 447),
}

# Extended attributes would outlive the files of a run on a kept directory.
_UNSUPPORTED: Final = {
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}

# Answered "done", and nothing is: they write out what the whole machine holds.
_IDLE: Final = {
    "sync": (162, 81),
    "syncfs": (306, 267),
}

# Calls with a process id as first argument: 0 means oneself. In a process namespace of its own
# a program can name itself, what it started, and process 1, which is ours.
_OWN_ONLY: Final = {
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "prlimit64": (302, 261),
}
_CLONE: Final = (56, 220)
_SOCKET: Final = (41, 198)
_SETPRIORITY: Final = (141, 140)
_SETSOCKOPT: Final = (54, 208)
_PERSONALITY: Final = (135, 92)
_IOCTL: Final = (16, 29)
_FCNTL: Final = (72, 25)

_NAMESPACES: Final = 0x7E020080
_UNIX: Final = 1
_PROTOCOLS: Final = {2: (0, 6, 17), 10: (0, 6, 17), 16: (0,)}
"""By family: of IPv4 and IPv6 the usual one, TCP and UDP; of netlink that about routes."""
_SOL_SOCKET: Final = 1
_BUFFER_SIZES: Final = (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and their forced kinds
_TERMINAL_INJECTION: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_FCNTLS: Final = (10, 1024, 1026, 1031)
"""F_SETSIG, with which an event of a descriptor may send SIGCONT; F_SETLEASE and F_NOTIFY,
which reach whoever else opens or changes a file of the host; F_SETPIPE_SZ."""

_ARCH: Final = (0xC000003E, 0xC00000B7)
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER: Final = 0x25
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06


def _fail(number: int) -> int:
    return 0x00050000 | number


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _argument(index: int, *, high: bool = False) -> bytes:
    return _op(_LOAD, 16 + 8 * index + (4 if high else 0))


def _when_number(number: int, body: list[bytes]) -> list[bytes]:
    """``body`` for one call; it must return on every path."""
    if number == _ABSENT:
        return []
    return [_op(_JUMP_EQUAL, number, 0, len(body)), *body]


def _one_of(values: tuple[int, ...], inside: int, outside: int) -> list[bytes]:
    """Compare the loaded argument with each value."""
    tests = [_op(_JUMP_EQUAL, value, len(values) - i) for i, value in enumerate(values)]
    return [*tests, _op(_RETURN, outside), _op(_RETURN, inside)]


def _sockets(own_network: bool) -> list[bytes]:
    """The families and protocols that programs use; others are kernel code to attack."""
    refuse, allow = _op(_RETURN, _fail(errno.EAFNOSUPPORT)), _op(_RETURN, _ALLOW)
    body = [_argument(0), _op(_JUMP_EQUAL, _UNIX, 0, 1), allow]
    if not own_network:
        return [*body, refuse]
    for family, protocols in _PROTOCOLS.items():
        judge = _one_of(protocols, _ALLOW, _fail(errno.EPROTONOSUPPORT))
        block = [_argument(2), *judge]
        body += [_op(_JUMP_EQUAL, family, 0, len(block)), *block]
    return [*body, refuse]


def build_filter(*, own_network: bool = True, own_processes: bool = True) -> bytes:
    """The classic BPF program for this machine.

    Without ``own_network`` (no network namespace) only unix sockets can be made; without
    ``own_processes`` (no process namespace) a process can name itself only by 0.
    """
    arch = linux.architecture()
    program = [
        _op(_LOAD, 4),
        _op(_JUMP_EQUAL, _ARCH[arch], 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, 0),
        _op(_JUMP_GREATER, _NEWEST, 0, 1),
        _op(_RETURN, _fail(errno.ENOSYS)),
    ]
    eperm, allow = _fail(errno.EPERM), _ALLOW
    for table, answer in (
        (_REFUSED, eperm),
        (_UNKNOWN, _fail(errno.ENOSYS)),
        (_UNSUPPORTED, _fail(errno.EOPNOTSUPP)),
        (_IDLE, _fail(0)),
    ):
        for numbers in table.values():
            program += _when_number(numbers[arch], [_op(_RETURN, answer)])
    named = _one_of((1,), eperm, allow) if own_processes else _one_of((0,), allow, eperm)
    for numbers in _OWN_ONLY.values():
        program += _when_number(numbers[arch], [_argument(0), *named])
    namespaces = [
        _argument(0),
        _op(_JUMP_SET, _NAMESPACES, 0, 1),
        _op(_RETURN, eperm),
        _op(_RETURN, allow),
    ]
    priority = [_argument(0), _op(_JUMP_EQUAL, 0, 1, 0), _op(_RETURN, eperm), _argument(1)]
    plain = (0, 0x0040000, 0xFFFFFFFF)  # Linux, no address randomisation, "tell me"
    program += _when_number(_CLONE[arch], namespaces)
    program += _when_number(_SOCKET[arch], _sockets(own_network))
    buffers = [_argument(1), _op(_JUMP_EQUAL, _SOL_SOCKET, 1, 0), _op(_RETURN, allow)]
    program += _when_number(
        _SETSOCKOPT[arch], [*buffers, _argument(2), *_one_of(_BUFFER_SIZES, _fail(0), allow)]
    )
    program += _when_number(_SETPRIORITY[arch], [*priority, *named])
    program += _when_number(_PERSONALITY[arch], [_argument(0), *_one_of(plain, allow, eperm)])
    program += _when_number(
        _IOCTL[arch], [_argument(1), *_one_of(_TERMINAL_INJECTION, eperm, allow)]
    )
    program += _when_number(_FCNTL[arch], [_argument(1), *_one_of(_FCNTLS, eperm, allow)])
    program.append(_op(_RETURN, _ALLOW))
    return b"".join(program)
