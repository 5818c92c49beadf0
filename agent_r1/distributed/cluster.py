"""Joining a Ray cluster: the one place that starts or leaves Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from agent_r1.errors import ClusterError, ConfigError
from agent_r1.under_way import under_way


@dataclass(frozen=True, slots=True)
class Node:
    """One living machine of the cluster. ``cards`` and ``cores`` as Ray was told."""

    id: str
    name: str
    cores: float
    cards: float
    address: str = ""


def require_ray() -> Any:
    """The module ``ray``; :class:`ConfigError` with the command that installs it."""
    if find_spec("ray") is None:
        raise ConfigError("this needs Ray, which is not installed: pip install 'agent-r1[ray]'")
    # Otherwise Ray makes a new environment out of the project around the driver on every node.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    return ray


@contextmanager
def joined(address: str) -> Iterator[list[Node]]:
    """The nodes of the running cluster at ``address``; leaves it at the end.

    ``local`` starts a cluster of this machine alone, which ends with this process.

    Raises:
        ClusterError: nothing answers there.
    """
    ray = require_ray()
    ours = not ray.is_initialized()
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts one of its own in its place
    if ours:
        try:
            if address != "local":
                _knock(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            with under_way("starting Ray" if address == "local" else "joining the Ray cluster"):
                ray.init(address, log_to_driver=False, configure_logging=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"no Ray cluster answers at ray.address={address}: {error}. Start one with "
                "'ray start --head', or look at 'ray status'"
            ) from error
    try:
        yield living_nodes()
    finally:
        if ours:
            ray.shutdown()
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


def _knock(address: str, patience_s: float = 10.0) -> None:
    """Raise ``OSError`` where nothing listens: Ray itself would wait there for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=patience_s).close()


def living_nodes() -> list[Node]:
    """The nodes that are alive, in the order of their names; names are made unique."""
    ray = require_ray()
    found = []
    for entry in ray.nodes():
        if entry["Alive"]:
            resources = entry["Resources"]
            cores, cards = (float(resources.get(kind, 0.0)) for kind in ("CPU", "GPU"))
            where = entry["NodeManagerAddress"]
            found.append((entry["NodeManagerHostname"], entry["NodeID"], cores, cards, where))
    hosts = [host for host, *_ in found]
    return [
        Node(id_, host if hosts.count(host) == 1 else f"{host}/{id_[:6]}", cores, cards, where)
        for host, id_, cores, cards, where in sorted(found)
    ]
