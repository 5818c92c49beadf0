"""The levels of isolation by name, and what each of them guarantees."""

from __future__ import annotations

from typing import Final, Literal

Level = Literal["strict", "landlock", "process"]
LEVELS: Final = ("strict", "landlock", "process")


def refusal(level: str, reason: str) -> str:
    """Why an executor of ``level`` cannot start here, and what to do about it."""
    return (
        f"this kernel denies what isolation={level!r} needs: {reason}. "
        "Allow unprivileged user namespaces (or run as root with CAP_SYS_ADMIN), or accept a "
        "weaker level by name"
    )
