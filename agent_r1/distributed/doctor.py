"""``agent-r1 doctor``: looks at this machine, or at every node of a Ray cluster."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent_r1.distributed.cluster import Node, require_ray
from agent_r1.distributed.facts import Facts, Question, gather
from agent_r1.distributed.verdict import Finding, Observed

_PATIENCE_S: Final = 180.0
_SEEN_WITHIN_S: Final = 10.0
_CONNECT_S: Final = 5.0


def observe_here(question: Question) -> Observed:
    """This machine alone, without Ray."""
    return Observed([gather(question)])


def observe_cluster(question: Question, nodes: Sequence[Node]) -> Observed:
    """Every node, by an actor on each; the driver has joined the cluster."""
    ray = require_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    examiner = ray.remote(num_cpus=0, max_restarts=0)(Examiner)
    actors = {
        node.name: examiner.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(node.name)
        for node in nodes
    }
    try:
        return _observe(ray, question, actors)
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _observe(ray: Any, question: Question, actors: dict[str, Any]) -> Observed:
    lost: dict[str, str] = {}

    def of_all(method: str, *arguments: object) -> dict[str, Any]:
        """The answers of every actor that still answers, asked all at once."""
        asked = {n: getattr(a, method).remote(*arguments) for n, a in actors.items()}
        deadline = time.monotonic() + _PATIENCE_S
        answers = {}
        for name, reference in asked.items():
            try:
                left = max(0.0, deadline - time.monotonic())
                answers[name] = ray.get(reference, timeout=left)
            except ray.exceptions.RayError as error:
                lost[name] = " ".join(str(error).split())[:300]
                ray.kill(actors.pop(name))
        return answers

    facts: dict[str, Facts] = of_all("facts", question)
    clocks = {name: _clock(ray, actor) for name, actor in actors.items()}
    addresses = of_all("listen")
    reached: dict[str, list[str]] = of_all("reach", addresses)
    unreached = [(a, b) for a, those in reached.items() for b in addresses if b not in those]
    tag = secrets.token_hex(4)
    of_all("leave_mark", question.folders, tag)
    names = sorted(actors)
    seen: dict[str, dict[str, list[str]]] = of_all("marks", question.folders, tag, names)
    of_all("clear_mark", question.folders, tag)
    unseen = {
        folder: [(r, w) for r in sorted(seen) for w in names if w not in seen[r][folder]]
        for folder in question.folders
    }
    return Observed(list(facts.values()), clocks, unseen, unreached, lost)


def _clock(ray: Any, actor: Any, tries: int = 5) -> tuple[float, float]:
    """Seconds that a node's clock is ahead of ours, and how uncertain that is."""
    best = (0.0, float("inf"))
    for _ in range(tries):
        before = time.time()
        theirs = ray.get(actor.now.remote(), timeout=_PATIENCE_S)
        after = time.time()
        uncertain = (after - before) / 2
        if uncertain < best[1]:
            best = (theirs - (before + after) / 2, uncertain)
    return best


class Examiner:
    """What looks at one node from the inside; an actor in a cluster."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._listener: socket.socket | None = None

    def facts(self, question: Question) -> Facts:
        return gather(question, self._name)

    def now(self) -> float:
        return time.time()

    def listen(self) -> tuple[str, int]:
        """Begin to answer on a free port; its address as other nodes know this one."""
        host = require_ray().util.get_node_ip_address()
        listener = socket.create_server(("", 0), backlog=1024)
        self._listener = listener
        threading.Thread(target=_greet, args=(listener, self._name), daemon=True).start()
        return host, listener.getsockname()[1]

    def reach(self, addresses: Mapping[str, tuple[str, int]]) -> list[str]:
        """Those of the named addresses at which the right node answers."""
        return [name for name, address in addresses.items() if _answers(address, name)]

    def leave_mark(self, folders: Sequence[str], tag: str) -> None:
        for folder in folders:
            with suppress(OSError):
                self._mark(folder, tag, self._name).write_text(self._name)

    def marks(self, folders: Sequence[str], tag: str, names: Sequence[str]) -> dict[str, list[str]]:
        """By folder, the nodes whose marks are seen here; waits for slow file systems."""
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while True:
            found = {
                folder: [name for name in names if self._mark(folder, tag, name).is_file()]
                for folder in folders
            }
            complete = all(len(seen) == len(names) for seen in found.values())
            if complete or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def clear_mark(self, folders: Sequence[str], tag: str) -> None:
        for folder in folders:
            self._mark(folder, tag, self._name).unlink(missing_ok=True)

    def _mark(self, folder: str, tag: str, name: str) -> Path:
        return Path(folder) / f".agent-r1-mark-{tag}-{name.replace('/', '_')}"


def _greet(listener: socket.socket, name: str) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(name.encode())


def _answers(address: tuple[str, int], name: str) -> bool:
    try:
        with socket.create_connection(address, timeout=_CONNECT_S) as connection:
            connection.settimeout(_CONNECT_S)
            return connection.recv(1024) == name.encode()
    except OSError:
        return False


def table(findings: Sequence[Finding]) -> str:
    """The findings as plain text, a remedy under each line that needs one."""
    rows = [(f.state, f.node or "all nodes", f.check, f.found, f.remedy) for f in findings]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = []
    for *cells, found, remedy in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{head}  {found}")
        if remedy:
            lines.append(f"{' ' * (sum(widths) + 6)}-> {remedy}")
    return "\n".join(lines)
