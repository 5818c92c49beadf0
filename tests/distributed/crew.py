"""Ranks that are started once and run many tests: processes of one gloo group on this machine."""

import multiprocessing
import os
import socket
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

TIMEOUT_S = 60.0


class Crew:
    """``count`` processes; ``run`` has all of them call one function at the same time."""

    def __init__(self, count):
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes, self._processes = [], []
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, port, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    @property
    def pids(self):
        return [process.pid for process in self._processes]

    def run(self, function, *arguments):
        """What ``function(ranks, *arguments)`` returns on each rank; the first error otherwise."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = {}
        while len(answers) < len(self._pipes):
            left = [pipe for pipe in self._pipes if pipe not in answers]
            ready = wait(left, 2 * TIMEOUT_S)
            assert ready, "the ranks do not answer"
            for pipe in ready:
                fine, answers[pipe] = pipe.recv()
                assert fine, answers[pipe]
        return [answers[pipe] for pipe in self._pipes]

    def close(self):
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            with suppress(OSError):
                pipe.send(None)
            process.join(5)
            process.kill()


def until(condition, patience_s=120.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def of_session(session):
    """The processes of this session, by number."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if file.read_text().rpartition(")")[2].split()[3] == session:
                found.append(int(file.parent.name))
    return found


def _serve(rank, count, port, pipe):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    import torch

    from agent_r1.distributed.ranks import joined, watched

    torch.set_num_threads(1)
    with joined("cpu", TIMEOUT_S) as ranks:
        while (command := pipe.recv()) is not None:
            function, arguments = command
            try:
                with watched(TIMEOUT_S):
                    pipe.send((True, function(ranks, *arguments)))
            except Exception:  # whatever it is, the test shows it
                pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
