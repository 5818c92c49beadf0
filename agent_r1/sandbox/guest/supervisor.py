"""Build the namespaces of one tier, run its zygote in them, and outlive it to clean up.

The supervisor is the only part that keeps the host's view of the machine. It executes
nothing but its own code; when the host goes (even by SIGKILL) it kills the zygote, which
is process 1 of its process namespace, so that the kernel ends everything inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from agent_r1.sandbox.guest import freezer, linux, processes, root, trees

NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_LOOK_MILLISECONDS = 1000
_END_MILLISECONDS = 20
_EXITING = 4
"""The kernel's flag of a process that has ended but for the wait for others."""


def main() -> NoReturn:
    """``argv[1]`` is the tier's description as JSON."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the host's affair
    control = socket.socket(fileno=spec["control"])
    host = os.pidfd_open(spec["host"])
    if os.getppid() != spec["host"]:
        os._exit(0)
    try:
        child = _start(spec, control) if spec["own_namespaces"] else _start_plain(spec)
    except OSError as error:
        control.send(_failure(error))
        os._exit(1)
    control.close()
    _watch(child, host, spec["freezer"])
    if not spec["own_namespaces"]:
        processes.prepare(own_namespace=False, user=None)
        processes.end_all(child, lambda: freezer.end_below(spec["freezer"] or ""))
        trees.remove(spec["zygote"]["scratch"])
    _remove_cgroups(spec["cgroups"])
    os._exit(0)


def _failure(error: BaseException) -> bytes:
    """Why there is no zygote. That one half was killed says nothing about the kernel."""
    lost = isinstance(error, ConnectionError | ProcessLookupError)
    return json.dumps({"failed": str(error), "lost": lost}).encode()


def _start(spec: dict[str, Any], control: socket.socket) -> int:
    """Clone the zygote's process; the two sides meet over ``gate`` to set up user ids."""
    ours, theirs = socket.socketpair()
    as_user = spec["ids"] is None
    child = linux.clone(NAMESPACES | (linux.CLONE_NEWUSER if as_user else 0))
    if child == 0:
        ours.close()
        try:
            _become_zygote(spec, theirs, as_user)
        except BaseException as error:
            control.send(_failure(error))
        os._exit(1)
    theirs.close()
    if as_user:
        write_maps(child, f"0 {os.geteuid()} 1", f"0 {os.getegid()} 1")
    elif ours.recv(1):
        base, count = spec["ids"]
        write_maps(child, f"0 {base} {count}", f"0 {base} {count}")
    ours.send(b"m")
    ours.close()
    return child


def _start_plain(spec: dict[str, Any]) -> int:
    """The zygote of a weaker level: a clean interpreter, and no namespaces."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        execute_zygote(spec, spec["guest"])
    return child


def write_maps(pid: int, uid_map: str, gid_map: str) -> None:
    """Map user and group ids of the user namespace of ``pid``."""
    for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
        try:
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise OSError(error.errno, f"writing {name} {text!r}: {error.strerror}") from error


def _become_zygote(spec: dict[str, Any], gate: socket.socket, as_user: bool) -> NoReturn:
    if as_user:
        gate.recv(1)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    layout = root.Layout(
        tuple(spec["binds"]),
        tuple((a, b) for a, b in spec["links"]),
        tuple((a, b) for a, b in spec["files"]),
        spec["guest"],
    )
    root.enter(root.build(layout))
    socket.sethostname("sandbox")
    if not as_user:
        os.setgroups([])
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        gate.send(b"n")
        gate.recv(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    execute_zygote(spec, root.GUEST)


def execute_zygote(spec: dict[str, Any], guest: str) -> NoReturn:
    """Replace this process by a clean interpreter that runs :mod:`.zygote`."""
    control: int = spec["control"]
    os.set_inheritable(control, True)
    for stream, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open("/dev/null", mode), stream)
    bootstrap = spec["bootstrap"].format(guest=guest, module="zygote")
    command = [spec["executable"], "-S", "-s", "-P", "-c", bootstrap, json.dumps(spec["zygote"])]
    os.execve(spec["executable"], command, spec["environment"])


def _watch(child: int, host: int, frozen: str | None) -> None:
    """Wait for the zygote's end, and bring it about when the host ends.

    ``frozen``: where groups may be whose processes, when they are killed, do not end before they
    are thawed. Process 1 of a namespace waits for all others, and tells nobody that it does.
    """
    poller = select.poll()
    zygote = os.pidfd_open(child)
    poller.register(zygote, select.POLLIN)
    poller.register(host, select.POLLIN)
    pause = _LOOK_MILLISECONDS if frozen else None
    while True:
        ready = {fd for fd, _ in poller.poll(pause)}
        if zygote in ready:
            os.waitpid(child, 0)
            return
        if host in ready:
            signal.pidfd_send_signal(zygote, signal.SIGKILL)
            poller.unregister(host)
            pause = _END_MILLISECONDS if frozen else None
        elif frozen and _is_exiting(child):
            freezer.end_below(frozen)


def _is_exiting(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return bool(int(file.read().rpartition(b")")[2].split()[6]) & _EXITING)


def _remove_cgroups(folders: list[str]) -> None:
    for folder in folders:
        for parent, children, _ in os.walk(folder, topdown=False):
            for name in children:
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(parent, name))
        with contextlib.suppress(OSError):
            os.rmdir(folder)
