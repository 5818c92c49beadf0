"""The levels of isolation by name, and what each of them guarantees."""

from __future__ import annotations

from typing import Final, Literal

Level = Literal["strict", "landlock", "process"]
LEVELS: Final = ("strict", "landlock", "process")

_NAMESPACES: Final = (
    "its own process tree: a program sees the processes of the host",
    "a limit on the disk: only single files are limited",
    "a private /tmp and /dev/shm",
    "the name and the settings of the host kept from it",
)
_LANDLOCK: Final = (
    "the host's files kept from it: it reads whatever its user may read",
    "signals kept within the program, where it runs as your own user",
)
MISSING: Final = {
    "strict": (),
    "landlock": _NAMESPACES,
    "process": (*_NAMESPACES, *_LANDLOCK),
}
"""What a level does *not* guarantee, in the words of the refusals."""

_DENIED: Final = {
    "clone": "namespaces of its own (processes, network, mounts, users)",
    "unshare": "namespaces of its own (processes, network, mounts, users)",
    "writing": "a user of its own",
    "mount": "a file system of its own",
    "umount": "a file system of its own",
    "pivot_root": "a root of its own",
    "prctl": "the system call filter",
    "landlock": "rules for files",
}


def refusal(level: str, reason: str) -> str:
    """Why an executor of ``level`` cannot start here, and what to do about it."""
    text = reason.partition("] ")[2] or reason
    guarantee = next((g for call, g in _DENIED.items() if text.startswith(call)), "isolation")
    weaker = LEVELS[LEVELS.index(level) + 1 :]
    advice = " or ".join(f"isolation={name!r}" for name in weaker)
    return (
        f"isolation={level!r} cannot guarantee {guarantee} here: the kernel answered {text!r}. "
        "Allow unprivileged user namespaces, or run with CAP_SYS_ADMIN"
        + (f", or accept a weaker level by name: {advice}" if weaker else "")
    )
