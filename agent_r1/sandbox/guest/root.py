"""Build the file system that programs see, and enter it.

A tmpfs with read-only binds of the interpreter, its libraries and the toolchains that the
host names, a handful of devices, a made-up ``/etc``; nothing else of the host.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from agent_r1.sandbox.guest import linux

GUEST = "/run/agent-r1"
_MOUNT_POINTS = ("/mnt", "/srv", "/media", "/sys", "/opt", "/tmp")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/shm": "/sandbox/shm",
    "/tmp": "/sandbox/tmp",
}
_FILES = {
    "/etc/passwd": "sandbox:x:1000:1000::/sandbox/work:/bin/sh\n",
    "/etc/group": "sandbox:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/hostname": "sandbox\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "/etc/resolv.conf": "",
    "/etc/mtab": "",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What of the host is visible: paths bound read-only at the same place, links, files."""

    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    guest: str


def build(layout: Layout) -> str:
    """Put the new root together and return where it is mounted."""
    new = _mount_point(layout)
    linux.mount("tmpfs", new, "tmpfs", linux.MS_NOSUID, "size=16m,mode=0755")
    for folder in ("/dev", "/etc", "/proc", "/sandbox"):
        os.mkdir(new + folder)
    for path, target in (*_LINKS.items(), *layout.links):
        place = new + _placed(path)
        _parent(place)
        if not os.path.lexists(place):
            os.symlink(target, place)
    for path, text in (*_FILES.items(), *layout.files):
        _write(new + _placed(path), text)
    for name in _DEVICES:
        _write(f"{new}/dev/{name}", "")
        linux.bind(f"/dev/{name}", f"{new}/dev/{name}", devices=True)
    for path in layout.binds:
        _bind(path, new + _placed(path))
    _bind(layout.guest, new + GUEST)
    return new


def _placed(path: str) -> str:
    """Where a path of the host really lies in the root: maybe below ``/tmp``, which is a link."""
    for link in ("/tmp", "/dev/shm"):
        if path.startswith(link + "/"):
            return _LINKS[link] + path.removeprefix(link)
    return path


class Shown:
    """What of the host is shown in a program's private folders, where each fresh one hides it.

    That is an interpreter or toolchain that is installed below ``/tmp``, say.
    """

    def __init__(self) -> None:
        self._folders = {
            f"/sandbox/{name}": os.open(f"/sandbox/{name}", os.O_RDONLY | os.O_DIRECTORY)
            for name in ("tmp", "shm")
            if os.path.isdir(f"/sandbox/{name}")
        }
        for descriptor in self._folders.values():
            os.set_inheritable(descriptor, False)

    def bind_again(self) -> None:
        """Put it into the folders that were just made."""
        for folder, descriptor in self._folders.items():
            os.fchdir(descriptor)  # a process outside of the slot's /proc has no /proc/self there
            for name in os.listdir("."):
                target = f"{folder}/{name}"
                if os.path.islink(name):
                    os.symlink(os.readlink(name), target)
                else:
                    _bind(f"./{name}", target)
            os.chdir("/")


def _mount_point(layout: Layout) -> str:
    sources = (*layout.binds, layout.guest)
    for candidate in _MOUNT_POINTS:
        inside = any(s == candidate or s.startswith(candidate + "/") for s in sources)
        if os.path.isdir(candidate) and not inside:
            return candidate
    raise OSError(f"no folder to mount a root on: tried {', '.join(_MOUNT_POINTS)}")


def _parent(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)


def _write(path: str, text: str) -> None:
    _parent(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _bind(source: str, target: str) -> None:
    _parent(target)
    if os.path.isdir(source):
        os.makedirs(target, mode=0o755, exist_ok=True)
    elif not os.path.exists(target):
        _write(target, "")
    linux.bind(source, target)


def enter(new: str) -> None:
    """Seal ``new``, mount the namespace's own ``/proc`` in it and make it the root."""
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("proc", new + "/proc", "proc", flags | linux.MS_NOEXEC)
    sealed = flags | linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY
    linux.mount("", new, "", sealed)
    linux.pivot_root(new)


def mount_box(file_bytes: int) -> None:
    """A fresh private file system for the files of one program."""
    options = f"size={file_bytes},nr_inodes={inodes(file_bytes)},mode=0755"
    linux.mount("tmpfs", "/sandbox", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)


def inodes(file_bytes: int) -> int:
    """How many files the working directory may hold."""
    return max(1024, file_bytes // 4096)
