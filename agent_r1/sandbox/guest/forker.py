"""The process of a slot that programs are forked from.

After a fork every page that the parent writes is copied once, at microseconds each, so
this loop does as little as a parent can: take an order, fork, wait, answer. With
namespaces it stays outside of the slot's process namespace while its children are born
inside, so that nothing a program does can reach it.
"""

from __future__ import annotations

import gc
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, NoReturn

from agent_r1.sandbox.guest import landlock, linux, messages, processes, program, seccomp

if TYPE_CHECKING:
    from agent_r1.sandbox.guest.init import Place

ANSWER: Final = struct.Struct("<id")
_DEVICES: Final = tuple(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))


def prepare(place: Place) -> mmap.mmap:
    """What forker and init share; the page tells whether a child reached the program."""
    if place.own_namespaces:
        program.open_score()
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.drop_bounding_set()
    rules = None
    if place.readable is not None:
        rules = landlock.make_rules(place.readable, (place.box, *_DEVICES))
    processes.prepare(own_namespace=place.own_namespaces, user=place.user)
    program.prepare(place.box, place.user, rules, confined=place.own_namespaces)
    return mmap.mmap(-1, mmap.PAGESIZE)


def serve(orders: socket.socket, started: mmap.mmap) -> NoReturn:
    """Fork one program per order and answer with how it ended."""
    linux.install_seccomp(seccomp.build_filter())
    gc.collect()
    gc.freeze()
    while True:
        data, descriptors = messages.receive(orders)
        if not data:
            os._exit(0)
        marked = program.become_victim()
        child = linux.fork()
        if child == 0:
            become_program(messages.Order.unpack(data), descriptors, started, marked=marked)
        if marked:
            program.be_no_victim()
        for descriptor in descriptors:
            os.close(descriptor)
        _, status, usage = os.wait4(child, 0)
        orders.send(ANSWER.pack(status, usage.ru_utime + usage.ru_stime))


def become_program(
    order: messages.Order, descriptors: list[int], started: mmap.mmap, *, marked: bool = False
) -> NoReturn:
    """Descriptors: job, standard output and error, maybe input.

    ``marked``: it was forked as the process that is killed first where memory ends. That the
    forker does, which for itself takes it back, costs a child nothing.
    """
    try:
        job = program.read_job(descriptors[0])
        program.attach(descriptors, bool(order.flags & messages.STDIN))
        os.closerange(3, 64)
        program.become(job, order.memory_bytes, started, marked=marked)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(1)
