"""Where a run came from: versions, revision, hardware, command line."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import agent_r1

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pydantic", "wandb", "vllm", "ray")


def provenance(seeds: Mapping[str, int]) -> dict[str, Any]:
    """The facts of ``run.json``. Imports none of the packages whose versions it tells."""
    return {
        "agent_r1": agent_r1.__version__,
        "git": _git_revision(Path(agent_r1.__file__).parent),
        "python": platform.python_version(),
        "packages": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "seeds": dict(seeds),
        "command": list(sys.argv),
    }


def hardware() -> dict[str, Any]:
    """Processors that this process may use, memory in bytes, and the names of the GPUs."""
    return {
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpu_names(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git_revision(folder: Path) -> dict[str, Any] | None:
    """Revision of a source checkout; ``None`` for an installed package."""
    revision = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "uncommitted_changes": bool(changes)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu_names() -> list[str]:
    listing = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return listing.splitlines() if listing else []


def _output(*command: str) -> str | None:
    """What a command prints; ``None`` when it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
