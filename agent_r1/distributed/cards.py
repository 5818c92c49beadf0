"""What ``nvidia-smi`` says of a machine's cards and of the links between them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_QUERY: Final = "index,name,memory.total,memory.used,driver_version"
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]*m")
_SLOWEST_FIRST: Final = ("SYS", "NODE", "PHB", "PXB", "PIX")
"""``nvidia-smi topo -m``'s names of paths over PCIe; NVLink (``NV#``) is faster than each."""


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU. Memory in MiB."""

    name: str
    memory: int
    used: int
    driver: str


def read_cards() -> tuple[Card, ...]:
    """The cards of this machine; empty without a driver."""
    return parse_cards(_output("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"))


def read_links() -> tuple[str, ...]:
    """The kinds of links between two cards of this machine, the slowest first."""
    return parse_links(_output("nvidia-smi", "topo", "-m"))


def parse_cards(listing: str) -> tuple[Card, ...]:
    """Cards of the CSV lines of ``nvidia-smi --query-gpu`` with this module's columns."""
    cards = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[0].isdigit():
            total, used = (_mebibytes(field) for field in fields[2:4])
            cards.append(Card(fields[1], total, used, fields[4]))
    return tuple(cards)


def parse_links(matrix: str) -> tuple[str, ...]:
    """Kinds of links above the diagonal of ``nvidia-smi topo -m``, the slowest first."""
    rows = [_ESCAPES.sub("", line).split() for line in matrix.splitlines()]
    header = next((row for row in rows if row and row[0] == "GPU0" and "X" not in row), [])
    columns = [name for name in header if re.fullmatch(r"GPU\d+", name)]
    kinds = {
        row[1 + column]
        for row in rows
        if row and row is not header and row[0] in columns
        for column in range(columns.index(row[0]) + 1, len(columns))
    }
    return tuple(sorted(kinds, key=_speed))


def read_fabric(root: Path = Path("/sys/class/infiniband")) -> tuple[str, ...]:
    """Ports of InfiniBand or RoCE adapters with state and rate, as ``mlx5_0/1 ACTIVE 400 Gb/s``."""
    ports = []
    for port in sorted(root.glob("*/ports/*")):
        try:
            state = (port / "state").read_text().split(":")[-1].strip()
            rate = (port / "rate").read_text().split("(")[0].strip()
        except OSError:
            continue
        ports.append(f"{port.parents[1].name}/{port.name} {state} {rate}")
    return tuple(ports)


def _speed(kind: str) -> tuple[int, int]:
    if kind in _SLOWEST_FIRST:
        return 0, _SLOWEST_FIRST.index(kind)
    lanes = kind.removeprefix("NV")
    return 1, int(lanes) if lanes.isdigit() else 0


def _mebibytes(field: str) -> int:
    number = field.split()[0]
    return int(number) if number.isdigit() else 0


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
