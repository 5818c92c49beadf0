"""What one machine says of itself: the facts that ``agent-r1 doctor`` judges.

Nothing here judges. Facts are read in the process that asks for them, so that the same
function serves a laptop and, inside a Ray actor, each node of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent_r1
from agent_r1.distributed.cards import Card, read_cards, read_fabric, read_links
from agent_r1.errors import AgentR1Error, SandboxError
from agent_r1.monitor.provenance import hardware, versions
from agent_r1.sandbox.base import RunRequest, RunStatus
from agent_r1.sandbox.isolation import LEVELS, Level

_SAMPLE: Final = "Zwölf Boxkämpfer: 17 * 23 = 391\n\tprint('<|im_end|>') 日本 🚀  <code>x</code>"


@dataclass(frozen=True, slots=True)
class Question:
    """What a node is asked. ``model`` is a folder or a hub's name, or empty."""

    model: str = ""
    trust_remote_code: bool = False
    folders: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    sandbox: bool = True


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as one node sees it: ``error`` is empty where it can be written."""

    path: str
    error: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """One machine. Memory in bytes; ``isolation`` is the strongest level that works, or empty."""

    node: str
    host: str
    cores: int
    memory: int
    shm: int
    cards: tuple[Card, ...]
    links: tuple[str, ...]
    fabric: tuple[str, ...]
    torch_cards: int
    versions: dict[str, str]
    folders: tuple[Folder, ...]
    isolation: str
    isolation_refused: str
    model_hash: str
    model_error: str
    taken_ports: tuple[int, ...]


def gather(question: Question, node: str = "") -> Facts:
    """The facts of this machine. Starts a sandbox, reads a tokenizer, imports torch."""
    isolation, refused = strongest_isolation() if question.sandbox else ("", "")
    digest, error = hash_model(question.model, question.trust_remote_code)
    machine = hardware()
    return Facts(
        node=node or socket.gethostname(),
        host=socket.gethostname(),
        cores=machine["cpu_cores"],
        memory=machine["memory_bytes"],
        shm=_free("/dev/shm"),
        cards=read_cards(),
        links=read_links(),
        fabric=read_fabric(),
        torch_cards=_torch_cards(),
        versions={
            "python": platform.python_version(),
            "agent_r1": agent_r1.__version__,
            **versions(),
        },
        folders=tuple(try_folder(Path(folder)) for folder in question.folders),
        isolation=isolation,
        isolation_refused=refused,
        model_hash=digest,
        model_error=error,
        taken_ports=taken_ports(question.ports),
    )


def strongest_isolation(levels: Sequence[Level] = LEVELS) -> tuple[str, str]:
    """The strongest level in which a program runs here, and why the one above it does not."""
    from agent_r1.sandbox.embedded import EmbeddedExecutor

    refused = ""
    for level in levels:
        try:
            with closing(EmbeddedExecutor(workers=1, isolation=level)) as executor:
                done = executor.run(RunRequest(code="print(6 * 7)"))
        except SandboxError as error:
            refused = refused or str(error)
            continue
        if done.status is RunStatus.SUCCESS and done.stdout == "42\n":
            return level, refused
        refused = refused or f"a program ended with {done.status}: {done.stderr.strip()[-200:]}"
    return "", refused


def hash_model(path: str, trust_remote_code: bool = False) -> tuple[str, str]:
    """A digest of what a tokenizer does and of the model's ``config.json``; or what is wrong.

    The tokenizer is loaded and tried, so that two folders whose files differ only in layout
    are equal, and a folder that cannot be loaded says so.
    """
    if not path:
        return "", ""
    from agent_r1.models.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    except (AgentR1Error, OSError, ValueError, ImportError) as error:
        return "", f"{type(error).__name__}: {error}"
    config = Path(path) / "config.json"
    told = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.encode(_SAMPLE),
        tokenizer.chat_template,
        tokenizer.eos_token_id,
        hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else "",
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12], ""


def try_folder(path: Path) -> Folder:
    """Whether ``path`` is there and can be written."""
    probe = path / f".agent-r1-probe-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        return Folder(str(path), error.strerror or str(error), 0)
    return Folder(str(path), "", _free(str(path)))


def taken_ports(ports: Iterable[int]) -> tuple[int, ...]:
    """Those of ``ports`` on which nothing can listen here."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                taken.append(port)
    return tuple(taken)


def _torch_cards() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _free(path: str) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0
