"""A world small enough to train in within a test, with tools of uneven latency."""

import hashlib
import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from threading import Timer
from urllib.request import urlopen

from agent_r1.algorithms.advantages import grpo
from agent_r1.tool.base import BaseToolEnv, call_context
from agent_r1.types import Reward, Task


class ToyEnv(BaseToolEnv):
    """Every turn that does not end the episode is answered, after a random while."""

    def __init__(self, fail_on="", delay=0.01):
        self.fail_on = fail_on
        self.delay = delay

    def step(self, raw_response):
        time.sleep(random.random() * self.delay)
        context = call_context.get()
        if self.fail_on and f".{self.fail_on}" in context.trajectory_id:
            raise RuntimeError("the toy broke")
        digest = hashlib.sha256(f"{raw_response}{context.seed}".encode()).hexdigest()[:4]
        return f"[{digest}]", [True], context.turn < 1


def tasks(split="train", seed=0, count=8):
    offset = 0 if split == "train" else 1000
    for i in range(offset, offset + count):
        yield Task(f"{split}-{i}", f"q{i}:", answer=str(i), data_source="toy")


def likes_low_bytes(trajectory):
    """A dense reward: the share of the model's tokens below 128."""
    ids = [i for turn in trajectory.turns for i in turn.completion.token_ids]
    share = sum(i < 128 for i in ids) / max(len(ids), 1)
    return Reward(share, {"accuracy": float(share > 0.6)})


def a_quarter(trajectory):
    """A reward that no other gives, to see which function scored."""
    return 0.25


def nan(trajectory):
    return float("nan")


def sometimes_raises(trajectory):
    if trajectory.index == 0:
        raise ValueError("no such column")
    return likes_low_bytes(trajectory)


class InterruptingEnv(ToyEnv):
    """Presses Ctrl-C once, in a step's rollouts (``at="3."``) or in a validation (``"val"``).

    ``"val@2"`` is the validation that follows the rollouts of step 2. A ``marker`` file makes
    the once hold for every environment that is told of it.
    """

    def __init__(self, at, marker=None, delay=0.01):
        super().__init__(delay=delay)
        self.at, _, after = at.partition("@")
        self.after = f"{after}."
        self.seen = not after
        self.marker = Path(marker) if marker else None
        if self.marker and self.marker.exists():
            self.at = ""

    def step(self, raw_response):
        where = call_context.get().trajectory_id
        self.seen = self.seen or where.startswith(self.after)
        if self.at and self.seen and where.startswith(self.at):
            self.at = ""
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(raw_response)


class InterruptingGreedyEnv(ToyEnv):
    """Presses Ctrl-C while the greedy trajectories of a step are sampled."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def step(self, raw_response):
        where = call_context.get().trajectory_id
        if self.at and where.startswith(self.at) and "~greedy" in where:
            self.at = ""
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(raw_response)


class KillingEnv(ToyEnv):
    """Kills a process of the run with SIGKILL, once, when a trajectory of step ``at`` calls it.

    ``word`` is in the command line of that process, and ``mark``, which looks like ``NAME=value``,
    in its environment. ``killed`` is a file that holds its session afterwards. ``instead``: the
    ``actor`` that watches it or its ``child`` is killed in its place.
    """

    def __init__(self, at, word, mark, killed, instead=None):
        super().__init__()
        self.at, self.word, self.mark = at, word, mark.encode()
        self.killed, self.instead = Path(killed), instead

    def step(self, raw_response):
        if call_context.get().trajectory_id.startswith(self.at):
            with suppress(FileExistsError):
                self.killed.touch(exist_ok=False)
                self.disturb(min(self.found()))
        return super().step(raw_response)

    def found(self):
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                marked = self.mark in (folder / "environ").read_bytes().split(b"\0")
                words = command_of(folder.name)
                if marked and self.word in words and "agent_r1.distributed.tied" not in words:
                    yield int(folder.name)

    def disturb(self, victim):
        self.kill(victim)

    def kill(self, victim):
        session = os.getsid(victim)
        if self.instead == "actor":
            victim = parent_of(parent_of(victim))
        elif self.instead == "child":
            victim = int(Path(f"/proc/{victim}/task/{victim}/children").read_text().split()[-1])
        os.kill(victim, signal.SIGKILL)
        self.killed.write_text(str(session))


def command_of(process):
    return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")


def parent_of(process):
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])


class EngineKillingEnv(KillingEnv):
    """Kills a vLLM server while it has requests under way."""

    def disturb(self, victim):
        words = command_of(victim)
        port = words[words.index("--port") + 1]
        deadline = time.monotonic() + 60
        while not self.under_way(port):
            assert time.monotonic() < deadline, "it got no request"
        self.kill(victim)

    def under_way(self, port):
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            told = answer.read().decode()
        running = re.findall(r"^vllm:num_requests_running\S* (\S+)$", told, re.MULTILINE)
        return sum(map(float, running))


class ProgramEnv(KillingEnv):
    """Every turn is answered by a program; a sandbox is killed while it runs one."""

    def __init__(self, tools, **options):
        super().__init__(**options)
        self.python = tools[0]
        self.seconds = 0.05

    def step(self, raw_response):
        digest, _, finished = super().step(raw_response)
        seconds, self.seconds = self.seconds, 0.05
        code = f"import time; time.sleep({seconds}); print({digest!r})"
        content, success = self.python.execute({"code": code})
        return content, [success], finished

    def disturb(self, victim):
        self.seconds = 2.0
        Timer(0.7, self.kill, [victim]).start()


def interrupting_grpo(inputs, **options):
    """Presses Ctrl-C between sampling and the update."""
    os.kill(os.getpid(), signal.SIGINT)
    return grpo(inputs)


class StragglingEnv(ToyEnv):
    """Every eighth trajectory or so takes a hundred times as long."""

    def step(self, raw_response):
        name = call_context.get().trajectory_id
        slow = hashlib.sha256(name.encode()).digest()[0] < 32
        time.sleep(0.5 if slow else 0.005)
        return super().step(raw_response)


def broken_estimator(inputs, **options):
    raise ZeroDivisionError("the estimator broke")
