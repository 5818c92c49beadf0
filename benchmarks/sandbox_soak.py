"""Half an hour of mixed programs while processes are killed under them: nothing may be wrong.

Two services run behind one client. ``steady`` has its workers and zygotes killed with
SIGKILL at random; ``victim`` is, besides, killed as a whole or shut down and started again.
Every answer is compared with what the program must print. Counted are

right    the expected outcome
typed    a ``SandboxError``: allowed while faults are injected, never shown to a model
struck   a program that the injector killed itself and that was reported as killed
wrong    anything else: the soak has failed

Sampled are the processes, mounts, open files, control groups and memory of the services, so
that growth shows; after every kill of a service it is checked that its processes end; at the
end, that everything is as it was before.

    python benchmarks/sandbox_soak.py --minutes 30

SIGINT or SIGTERM ends it early: its services are shut down and what it has is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop
from sandbox_soak_programs import Program, draw

from agent_r1.errors import SandboxError
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus
from agent_r1.sandbox.client import ClientPolicy, SandboxClient

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RECORDED = ("tally", "kinds", "typed", "faults", "wrong", "survivors", "samples", "slowest")
SAMPLE_SECONDS = 10.0
GONE_SECONDS = 20.0
SERVER = """
import os, signal, sys, threading
from agent_r1.sandbox.embedded import EmbeddedExecutor
from agent_r1.sandbox.serve import serve
def end_with_parent():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
executor = EmbeddedExecutor()
try:
    serve(executor, port=int(sys.argv[1]), ready=lambda url: print(url, flush=True))
finally:
    executor.close()
"""


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: str
    role: str = "program"

    @property
    def alive(self) -> bool:
        now = read_process(self.pid)
        return now is not None and now.started == self.started


def read_process(pid: int) -> Process | None:
    try:
        # Before the last bracket is a name that a program may have chosen, of any bytes.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), fields[19])


def descendants(root: int, known: Iterable[Process] = ()) -> list[Process]:
    """The living tree below ``root``, with the role of each process.

    ``known``: members seen earlier. Where a process between was killed, the kernel gives its
    children to another parent; they belong to the tree all the same.
    """
    every = [read_process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    living = {process.pid: process for process in every if process is not None}
    children: dict[int, list[Process]] = {}
    for process in living.values():
        children.setdefault(process.parent, []).append(process)
    roles = {root: "service"}
    for process in known:
        now = living.get(process.pid)
        if now is not None and now.started == process.started:
            roles[process.pid] = process.role
    found = {pid: replace(living[pid], role=name) for pid, name in roles.items() if pid != root}
    level = list(roles)
    while level:
        born = [child for parent in level for child in children.get(parent, [])]
        level = [child.pid for child in born if child.pid not in roles]
        for child in born:
            if child.pid not in roles:
                roles[child.pid] = role(child.pid, roles[child.parent])
                found[child.pid] = replace(child, role=roles[child.pid])
    return list(found.values())


def process_ids(pid: int | str) -> list[int]:
    """The ids of a process in its process namespace and in those around it, ours first."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_text()
        return [int(number) for number in text.partition("\nNSpid:")[2].partition("\n")[0].split()]
    return []


def role(pid: int, parent: str) -> str:
    """Tiers and slots have a process namespace each; of both, process 1 is not a program."""
    ids = process_ids(pid)
    depth = len(ids) - len(process_ids("self"))
    if depth == 0:
        return "supervisor"
    if depth == 1:
        first = "forker" if parent == "zygote" else "keeper"
        return "zygote" if ids[-1] == 1 else first
    return "init" if ids and ids[-1] == 1 else "program"


class Service:
    """One service process on a port of its own, started again at will."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.port, self.log = name, 0, log
        self.pids: list[int] = []
        self.known: list[Process] = []
        self.start()

    def family(self) -> list[Process]:
        """Every living process that this service or one of its processes started."""
        self.known = descendants(self.child.pid, self.known)
        return self.known

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(self.port)],
                process_group=0,  # a terminal's Ctrl-C is for the soak alone
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.child.stdout is not None
        self.url = self.child.stdout.readline().strip()
        if not self.url:
            raise SystemExit(f"{self.name} did not start; see {self.log}")
        self.port = int(self.url.rsplit(":", 1)[1])
        self.pids.append(self.child.pid)

    def end(self, number: signal.Signals) -> list[Process]:
        """Send the signal; the members of its tree that outlive it for too long."""
        family = self.family()
        self.child.send_signal(number)
        self.child.wait(120)
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            pipe.close()
        until = time.monotonic() + GONE_SECONDS
        while (left := [p for p in family if p.alive]) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def sample(self) -> dict[str, float]:
        family = self.family()
        pid = self.child.pid
        ours = [p for p in family if p.role != "program"]
        mounts = [lines(f"/proc/{p.pid}/mountinfo") for p in ours]
        return {
            "processes": len(family),
            "infrastructure": len(ours),
            "open_files": count(f"/proc/{pid}/fd"),
            "resident_mb": resident(pid),
            "tree_mb": sum(proportional(p.pid) for p in family),
            "mounts": max(mounts, default=0),
        }


def lines(path: str) -> int:
    with contextlib.suppress(OSError):
        return Path(path).read_bytes().count(b"\n")
    return 0


def count(folder: str) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(folder))
    return 0


def resident(pid: int) -> float:
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def proportional(pid: int) -> float:
    """MB of memory, shared pages divided by those who share them."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split()[0]) / 1e3
    return 0.0


def host(services: list[Service]) -> dict[str, int]:
    """What must be the same before and after, when no service runs."""
    # os.walk takes it in its stride that groups vanish under it.
    groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    owners = {f"-{pid}-" for service in services for pid in service.pids}
    ours = [
        name
        for name in groups
        if name.startswith("agent-r1-") and any(owner in name for owner in owners)
    ]
    return {
        "mounts": lines("/proc/self/mountinfo"),
        "control_groups": len(ours),
        "temporary_files": count("/tmp"),
        "shared_memory": count("/dev/shm"),
        "own_open_files": count("/proc/self/fd"),
    }


@dataclass
class Soak:
    """The state of the run, and its figures."""

    random: random.Random
    until: float
    started: float = field(default_factory=time.monotonic)
    tally: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    typed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Why the watcher or the injector ended early."""
    samples: list[dict[str, object]] = field(default_factory=list)
    slowest: float = 0.0
    struck_allowed: int = 0
    stopped: str = ""
    seen_randoms: set[str] = field(default_factory=set)

    def stop(self, number: signal.Signals) -> None:
        """End now: what runs is awaited, nothing new is begun."""
        self.stopped = number.name
        self.until = time.monotonic()

    def judge(self, program: Program, result: RunResult | SandboxError) -> None:
        self.kinds[program.kind] += 1
        if isinstance(result, SandboxError):
            self.tally["typed"] += 1
            self.typed[f"{type(result).__name__}: {str(result)[:80]}"] += 1
            return
        problem = program.check(result)
        if problem is None and program.kind == "fresh random":
            if result.stdout in self.seen_randoms:
                problem = "a random number came twice"
            self.seen_randoms.add(result.stdout)
        if problem is None:
            self.tally["right"] += 1
        elif result.status is RunStatus.KILLED and self.tally["struck"] < self.struck_allowed:
            self.tally["struck"] += 1
        else:
            self.tally["wrong"] += 1
            self.wrong.append(f"{program.kind}: {problem}: {result!r}"[:600])


async def load(soak: Soak, client: SandboxClient, number: int) -> None:
    """One worker: programs one after the other, now and then a session of some steps."""
    chance = random.Random(soak.random.random())
    turn = 0
    while time.monotonic() < soak.until:
        turn += 1
        if chance.random() < 0.05:
            await in_session(soak, client, chance, f"soak-{os.getpid()}-{number}-{turn}")
            continue
        program = draw(chance, f"{number}-{turn}")
        soak.judge(program, await attempt(soak, client, program.request))


async def attempt(
    soak: Soak, client: SandboxClient, request: RunRequest
) -> RunResult | SandboxError:
    started = time.monotonic()
    try:
        return await asyncio.wait_for(client.arun(request), 300)
    except SandboxError as error:
        return error
    except TimeoutError:
        soak.wrong.append(f"a hang: {request!r}"[:300])
        soak.tally["wrong"] += 1
        return SandboxError("hang")
    finally:
        soak.slowest = max(soak.slowest, time.monotonic() - started)


async def in_session(soak: Soak, client: SandboxClient, chance: random.Random, name: str) -> None:
    """A counter kept in an interpreter: right, or an announced loss, never an old value."""
    for step in range(chance.randrange(2, 12)):
        code = "n = 0\nprint(n)" if step == 0 else "n += 1\nprint(n)"
        request = RunRequest(code=code, session=name, limits=Limits(wall_seconds=10))
        expected = f"{step}\n"

        def check(result: RunResult, expected: str = expected) -> str | None:
            lost = result.status is RunStatus.ERROR and "NameError" in result.stderr
            return None if result.stdout == expected or lost else "a wrong counter"

        result = await attempt(soak, client, request)
        soak.judge(Program("session", request, check), result)
        if isinstance(result, SandboxError) or result.status is not RunStatus.SUCCESS:
            break
    await asyncio.to_thread(client.close_session, name)


async def inject(soak: Soak, services: list[Service], seconds: float, whole: float) -> None:
    """A fault every ``seconds`` or so: mostly one process, now and then the whole victim.

    ``whole``: how often that is. No other fault is injected until it is back.
    """
    victim = services[1]
    while True:
        await asyncio.sleep(seconds * soak.random.uniform(0.5, 1.5))
        if time.monotonic() > soak.until - 5:
            return
        if soak.random.random() < whole:
            number = soak.random.choice([signal.SIGKILL, signal.SIGTERM])
            soak.faults[f"victim {number.name}"] += 1
            left = await asyncio.to_thread(victim.end, number)
            soak.survivors += [f"{p.pid} after {number.name}" for p in left]
            await asyncio.to_thread(victim.start)
            continue
        family = soak.random.choice(services).family()
        if not family:
            continue
        target = soak.random.choice(family)
        try:
            os.kill(target.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        soak.faults[f"kill {target.role}"] += 1
        if target.role == "program":
            soak.struck_allowed += 1


async def watch(soak: Soak, services: list[Service]) -> None:
    while True:
        sample: dict[str, object] = {"minute": (time.monotonic() - soak.started) / 60}
        sample |= {f"host_{k}": v for k, v in host(services).items()}
        sample |= {f"steady_{k}": v for k, v in services[0].sample().items()}
        sample["client_mb"] = resident(os.getpid())
        sample["done"] = sum(soak.kinds.values())
        soak.samples.append(sample)
        await asyncio.sleep(SAMPLE_SECONDS)


async def run(options: argparse.Namespace) -> tuple[Soak, dict[str, object]]:
    uvloop.new_event_loop().close()  # opens a pipe of the process, once and for all
    chance = random.Random(options.seed)
    soak = Soak(chance, until=math.inf)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, soak.stop, number)
    before = host([])
    options.log.write_bytes(b"")
    services = [Service("steady", options.log), Service("victim", options.log)]
    soak.until = time.monotonic() + options.minutes * 60
    policy = ClientPolicy(attempts=5)
    client = SandboxClient([service.url for service in services], policy=policy)
    helpers = [asyncio.ensure_future(watch(soak, services))]
    faults = asyncio.ensure_future(inject(soak, services, options.fault_seconds, options.whole))
    try:
        await asyncio.gather(*[load(soak, client, n) for n in range(options.workers)])
        await faults
    finally:
        for helper in (*helpers, faults):
            helper.cancel()
        for end in await asyncio.gather(*helpers, faults, return_exceptions=True):
            if isinstance(end, Exception):
                soak.broken.append(repr(end))
        client.close()
        for service in services:
            left = await asyncio.to_thread(service.end, signal.SIGTERM)
            soak.survivors += [f"{p.pid} after the end" for p in left]
    return soak, {"before": before, "after": host(services), "restarts": len(services[1].pids) - 1}


def growth(soak: Soak) -> dict[str, dict[str, float]]:
    """Medians of the second and of the last sixth: the first one is warming up."""
    sixth = max(1, len(soak.samples) // 6)
    early, late = soak.samples[sixth : 2 * sixth], soak.samples[-sixth:]
    names = [name for name in soak.samples[0] if name not in ("minute", "done")]
    return {
        name: {
            "early": statistics.median(float(str(s[name])) for s in early or late),
            "late": statistics.median(float(str(s[name])) for s in late),
        }
        for name in names
    }


def table(soak: Soak, facts: dict[str, object]) -> str:
    done = sum(soak.kinds.values())
    minutes = (time.monotonic() - soak.started) / 60
    rows = [
        ("programs", f"{done} in {minutes:.1f} minutes"),
        ("right", soak.tally["right"]),
        ("typed sandbox errors", soak.tally["typed"]),
        ("killed by the injector, reported as killed", soak.tally["struck"]),
        ("**wrong**", soak.tally["wrong"]),
        ("faults injected", sum(soak.faults.values())),
        *((f"… {name}", number) for name, number in sorted(soak.faults.items())),
        ("processes that outlived their service", len(soak.survivors)),
        ("slowest answer, with retries", f"{soak.slowest:.1f} s"),
    ]
    rows += [
        (f"{name}: early → late", f"{at['early']:.1f} → {at['late']:.1f}")
        for name, at in growth(soak).items()
    ]
    rows.append(("host before", facts["before"]))
    rows.append(("host after", facts["after"]))
    text = "| what | figure |\n|---|---|\n"
    return text + "".join(f"| {name} | {figure} |\n" for name, figure in rows)


def plot(soak: Soak, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = ("steady_processes", "steady_open_files", "steady_resident_mb", "steady_tree_mb")
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 2.8))
    minutes = [sample["minute"] for sample in soak.samples]
    for axis, name in zip(axes, shown, strict=True):
        axis.plot(minutes, [sample[name] for sample in soak.samples], linewidth=1)
        axis.set(title=name.replace("_", " "), xlabel="minutes")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def verdict(soak: Soak, facts: dict[str, object]) -> Iterator[str]:
    """What went wrong, if anything did."""
    if soak.tally["wrong"]:
        yield f"{soak.tally['wrong']} wrong results"
    if soak.broken:
        yield f"the soak itself broke: {soak.broken}"
    if soak.survivors:
        yield f"processes outlived their service: {soak.survivors[:5]}"
    before, after = facts["before"], facts["after"]
    assert isinstance(before, dict) and isinstance(after, dict)
    for name in ("mounts", "control_groups", "shared_memory", "own_open_files"):
        if after[name] > before[name]:
            yield f"{name} grew from {before[name]} to {after[name]}"
    if soak.stopped:
        yield f"stopped by {soak.stopped} before its time"
    if not soak.tally["right"]:
        yield "nothing ran"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--fault-seconds", type=float, default=4.0)
    parser.add_argument("--whole", type=float, default=0.15, help="share of faults to the victim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox_soak")
    parser.add_argument("--log", type=Path, default=Path("sandbox_soak.log"))
    options = parser.parse_args()
    soak, facts = asyncio.run(run(options))
    problems = list(verdict(soak, facts))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **{name: getattr(soak, name) for name in RECORDED},
        **facts,
        "growth": growth(soak),
        "problems": problems,
    }
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(soak, facts))
    plot(soak, options.out.with_suffix(".png"))
    print(table(soak, facts))
    print("\n".join(soak.wrong[:10]))
    print("PROBLEMS: " + "; ".join(problems) if problems else "nothing wrong, nothing left behind")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
