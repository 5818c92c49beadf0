"""Process 1 of a tier: imports what its programs want once, then forks slots on demand.

A slot is three processes. The *forker* makes the slot's namespaces and forks programs into
them; that it does nothing else keeps small what is copied after each fork. The *keeper*
renews the private file system when a program has written to it, which the others, behind
the system call filter, cannot. The *init* is process 1 of the slot's process namespace and
conducts: it speaks with the host, keeps the time, and ends what a program leaves.

Without namespaces a slot is two: the keeper, and an init that forks its programs itself,
because only its own descendants can be told from the other processes of the host.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from agent_r1.sandbox.guest import forker, init, linux, messages, python, root, trees, warmup
from agent_r1.sandbox.guest.supervisor import NAMESPACES, write_maps

_PROGRAM_ID = 1000
_NETWORK = (
    ("tcp_rmem", "4096 65536 131072"),
    ("tcp_wmem", "4096 65536 131072"),
    ("tcp_max_tw_buckets", "0"),
    ("ip_unprivileged_port_start", "1"),
)


def main() -> NoReturn:
    """``argv[1]`` is the zygote's part of the tier's description as JSON."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    control = socket.socket(fileno=spec["control"])
    control.set_inheritable(False)
    _forget_bootstrap()
    sys.path.extend(spec["paths"])
    loaded = _import_all(spec["modules"])
    python.rehearse()
    gc.disable()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(json.dumps({"ready": loaded}).encode())
    while True:
        data, descriptors = messages.receive(control)
        if not data:
            os._exit(0)
        channel = socket.socket(fileno=descriptors[0])
        _fork_slot(spec, messages.unpack_slot(data), channel, control)
        channel.close()


def _forget_bootstrap() -> None:
    """Programs see neither our modules nor the way they were loaded."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "agent_r1"]:
        del sys.modules[name]
    sys.path[:] = [p for p in sys.path if p]


def _import_all(modules: list[str]) -> list[str]:
    loaded = []
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
            loaded.append(name)
    warmup.warm(loaded)
    return loaded


def _fork_slot(
    spec: dict[str, Any], index: int, channel: socket.socket, control: socket.socket
) -> None:
    """Fork a slot and write the user id maps that it cannot write for itself."""
    ours, theirs = socket.socketpair()
    zygote = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(zygote)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours.close()
        control.close()
        _report_failure(channel, lambda: _start_slot(spec, index, channel, theirs))
    theirs.close()
    with contextlib.suppress(OSError):
        if ours.recv(1):
            _map_slot(spec, index, child)
            ours.send(b"m")
    ours.close()


def _map_slot(spec: dict[str, Any], index: int, keeper: int) -> None:
    if spec["single_id"]:
        maps = f"{_PROGRAM_ID} 0 1"
    else:
        first = 1 + 2 * index
        maps = f"0 {first} 1\n{_PROGRAM_ID} {first + 1} 1"
    write_maps(keeper, maps, maps)


def _start_slot(
    spec: dict[str, Any], index: int, channel: socket.socket, gate: socket.socket
) -> NoReturn:
    """Make the slot's place, then its processes around it."""
    confined: bool = spec["own_namespaces"]
    place = _enter_namespaces(spec, gate) if confined else _find_place(spec, index)
    gate.close()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    box = _Box(place)
    box.make(place.file_bytes)
    if confined:
        _start_confined(place, box, channel)
    _start_plain(place, box, channel)


def _start_confined(place: init.Place, box: _Box, channel: socket.socket) -> NoReturn:
    """Become the forker, of a keeper beside it and of an init in a new process namespace."""
    renewals, keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _fork_guarded():
        renewals.close()
        channel.close()
        _renew_on_demand(keeper_end, box)
    keeper_end.close()
    started = forker.prepare(place)
    channel.send(messages.HELLO)
    linux.unshare(linux.CLONE_NEWPID)
    orders, forker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _fork_guarded():
        forker_end.close()
        _report_failure(channel, lambda: init.main(channel, renewals, orders, place, started))
    for end in (channel, renewals, orders):
        end.close()
    forker.serve(forker_end, started)


def _start_plain(place: init.Place, box: _Box, channel: socket.socket) -> NoReturn:
    """Become the keeper, and outlive the init to clear its folder away."""
    renewals, keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if _fork_guarded():
        keeper_end.close()
        started = forker.prepare(place)
        _report_failure(channel, lambda: init.main(channel, renewals, None, place, started))
    renewals.close()
    channel.close()
    _renew_on_demand(keeper_end, box)


def _fork_guarded() -> bool:
    """Fork a child that ends with this process. True in the child."""
    parent = os.getpid()
    if os.fork():
        return False
    _end_with(parent)
    return True


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends, which it may have done already."""
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() not in (parent, 0):  # 0: the parent is outside of this process namespace
        os._exit(1)


def _report_failure(channel: socket.socket, function: Callable[[], NoReturn]) -> NoReturn:
    try:
        function()
    except BaseException as error:
        with contextlib.suppress(OSError):
            channel.send(b"E" + str(error).encode()[:4000])
    os._exit(1)


def _enter_namespaces(spec: dict[str, Any], gate: socket.socket) -> init.Place:
    """All but the process namespace, which the keeper must stay outside of."""
    linux.unshare(NAMESPACES & ~linux.CLONE_NEWPID | linux.CLONE_NEWUSER)
    gate.send(b"u")
    if not gate.recv(1):
        raise OSError("the zygote could not map user ids")
    if not spec["single_id"]:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    socket.sethostname("sandbox")
    _set_up_network()
    user = None if spec["single_id"] else _PROGRAM_ID
    return init.Place("/sandbox", user, True, None, spec["file_bytes"], spec["counted"])


def _set_up_network() -> None:
    """A loopback of the slot's own, on which a program may serve itself.

    Connections hold no more than other sockets, and leave no trace when they end: the next
    program of the slot can listen on the same port. Where the kernel refuses, it stays down.
    """
    with contextlib.suppress(OSError):
        for name, value in _NETWORK:
            with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
                file.write(value)
        linux.raise_loopback()


def _find_place(spec: dict[str, Any], index: int) -> init.Place:
    """Without namespaces: a folder of its own and, as root, a user of its own."""
    user = None if spec["single_id"] else spec["first_id"] + index
    readable = tuple(spec["readable"]) if spec["readable"] is not None else None
    box = tempfile.mkdtemp(prefix="agent-r1-", dir=spec["scratch"])
    return init.Place(box, user, False, readable, spec["file_bytes"], spec["counted"])


class _Box:
    """The private files of a slot: a mounted file system of limited size, or a folder."""

    def __init__(self, place: init.Place) -> None:
        self._place = place
        self._shown = root.Shown() if place.own_namespaces else None

    def make(self, file_bytes: int) -> None:
        """Make it empty."""
        place = self._place
        owner = os.getuid() if place.user is None else place.user
        if place.own_namespaces:
            owner = _PROGRAM_ID
            root.mount_box(file_bytes)
        os.chmod(place.box, 0o755)
        for name, mode in (("work", 0o755), ("tmp", 0o1777), ("shm", 0o1777)):
            path = f"{place.box}/{name}"
            os.mkdir(path)
            os.chmod(path, mode)
            if owner != os.getuid():
                os.chown(path, owner, owner)
        if self._shown is not None:
            self._shown.bind_again()

    def clear(self) -> None:
        """Take it away with all that is in it."""
        if self._place.own_namespaces:
            linux.umount(self._place.box)
            return
        for name in ("work", "tmp", "shm"):
            trees.remove(f"{self._place.box}/{name}")

    def remove(self) -> None:
        """The slot has ended. What is mounted ends with the namespace."""
        if not self._place.own_namespaces:
            trees.remove(self._place.box)


def _renew_on_demand(requests: socket.socket, box: _Box) -> NoReturn:
    """The keeper's life."""
    while True:
        data = requests.recv(16)
        if not data:
            with contextlib.suppress(ChildProcessError):
                os.wait()  # without namespaces: for the init, whose programs end with it
            box.remove()
            os._exit(0)
        box.clear()
        box.make(int(data))
        requests.send(b"r")
