"""How many programs a second the sandbox runs, against what else could run them.

Contestants, interleaved round by round in one run so that a noisy machine is noisy to all:

service    our HTTP service in a process of its own, full isolation
embedded   our executor without HTTP, in this process, full isolation
peer       a SandboxFusion server at ``--peer URL`` (loopback, so that its CPU can be read)
fresh      a new Python interpreter per program, without isolation and without HTTP, started as
           lean as can be (no ``site``)
before     the service of another checkout, where ``--before`` names its interpreter; the median
           over the rounds of service / before is printed, each round a pair

Every answer is checked; a wrong one fails the run. Each program is unique (a trailing
comment), so that nothing can be remembered. The load is closed: a fixed number of programs
under way at any time. CPU is what the contestant's processes and their children used,
from /proc, without the load generator.

    python benchmarks/sandbox_throughput.py --peer http://127.0.0.1:8090
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from agent_r1.http1 import Address, Pool, TransportError
from agent_r1.sandbox import wire
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
TICK = os.sysconf("SC_CLK_TCK")
LOOP = "while True: pass"
LOOP_EVERY = 20


@dataclass(frozen=True)
class Workload:
    code: str
    expected: str
    loops: bool = False
    bar: float | None = None
    """Least ratio of requests per second to the peer's at concurrency 32."""


WORKLOADS = {
    "print": Workload("print(1+1)", "2\n", bar=12),
    "math": Workload("import math; print(math.factorial(20))", "2432902008176640000\n", bar=12),
    "sympy": Workload(
        "import sympy; x = sympy.symbols('x'); print(sympy.solve(x**2 - 5*x + 6, x))",
        "[2, 3]\n",
        bar=28,
    ),
    "numpy": Workload("import numpy as np; print(np.linalg.det(np.eye(3)))", "1.0\n", bar=28),
    "loops": Workload("print(1+1)", "2\n", loops=True),
}

Run = Callable[[RunRequest], Awaitable[RunResult]]


@dataclass
class Contestant:
    name: str
    run: Run
    cpu_seconds: Callable[[], float]


@dataclass
class Sample:
    """One contestant, one workload, one concurrency; all rounds together."""

    contestant: str
    workload: str
    concurrency: int
    seconds: float = 0.0
    cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    loop_latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        return (len(self.latencies) + len(self.loop_latencies)) / self.seconds

    def summary(self) -> dict[str, object]:
        done = len(self.latencies) + len(self.loop_latencies)
        return {
            "contestant": self.contestant,
            "workload": self.workload,
            "concurrency": self.concurrency,
            "requests": done,
            "wrong": dict(self.wrong),
            "per_second": self.per_second,
            "per_second_by_round": self.rates,
            "p50_ms": quantile(self.latencies, 0.50),
            "p95_ms": quantile(self.latencies, 0.95),
            "p99_ms": quantile(self.latencies, 0.99),
            "cpu_ms_per_request": 1e3 * self.cpu / max(1, done),
            "loop_p50_ms": quantile(self.loop_latencies, 0.5),
            "loop_max_ms": quantile(self.loop_latencies, 1.0),
        }


def quantile(seconds: list[float], share: float) -> float | None:
    """Milliseconds; the nearest rank."""
    ranked = sorted(seconds)
    return 1e3 * ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else None


async def measure(rival: Contestant, name: str, sample: Sample, seconds: float) -> None:
    """One round of closed load, added to ``sample``."""
    workload, count = WORKLOADS[name], 0
    requests_before = len(sample.latencies) + len(sample.loop_latencies)

    async def worker(until: float) -> None:
        nonlocal count
        while time.perf_counter() < until:
            count += 1
            loops = workload.loops and count % LOOP_EVERY == LOOP_EVERY // 2
            code = f"{LOOP if loops else workload.code}  # {count}"
            limits = Limits(wall_seconds=1.0 if loops else 10.0)
            started = time.perf_counter()
            try:
                result = await rival.run(RunRequest(code=code, limits=limits))
            except Exception as error:
                sample.wrong[f"{type(error).__name__}: {error}"[:120]] += 1
                await asyncio.sleep(0.01)
                continue
            taken = time.perf_counter() - started
            good = (
                result.status is RunStatus.TIMEOUT
                if loops
                else result.status is RunStatus.SUCCESS and result.stdout == workload.expected
            )
            if not good:
                sample.wrong[
                    f"{result.status}: {result.stdout[-40:]!r} {result.stderr[-80:]!r}"
                ] += 1
            (sample.loop_latencies if loops else sample.latencies).append(taken)

    cpu, began = rival.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*[worker(began + seconds) for _ in range(sample.concurrency)])
    taken = time.perf_counter() - began
    done = len(sample.latencies) + len(sample.loop_latencies) - requests_before
    sample.seconds += taken
    sample.cpu += rival.cpu_seconds() - cpu
    sample.rates.append(done / taken)


def tree_cpu(root: int) -> float:
    """CPU seconds of a process, its living descendants, and all whom they waited for."""
    stats: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = Path("/proc", entry, "stat").read_text(errors="replace")
                fields = text.rpartition(")")[2].split()
                stats[int(entry)] = int(fields[1]), sum(map(int, fields[11:15]))
    family, grown = {root}, True
    while grown:
        grown = False
        for pid, (parent, _) in stats.items():
            if parent in family and pid not in family:
                family.add(pid)
                grown = True
    return sum(stats[pid][1] for pid in family if pid in stats) / TICK


def listener_of(url: str) -> int:
    """The process that listens on a loopback port."""
    port = Address.parse(url, "sandbox").port
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[3] == "0A" and int(columns[1].split(":")[1], 16) == port:
            link = f"socket:[{columns[9]}]"
            for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor) == link:
                        return int(descriptor.parts[2])
    raise SystemExit(f"nothing listens at {url}")


def over_http(url: str, name: str, pid: int) -> Contestant:
    pool = Pool(Address.parse(url, "sandbox"))

    async def run(request: RunRequest) -> RunResult:
        body = wire.encode(wire.from_request(request))
        try:
            response = await pool.post("/run_code", body, 300)
        except TransportError as error:
            if not error.stale:  # a kept connection that the server had given up
                raise
            response = await pool.post("/run_code", body, 300, fresh=True)
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.body[:100]!r}")
        return wire.to_result(response.body)[0]

    return Contestant(name, run, lambda: tree_cpu(pid))


def fresh_interpreters() -> Contestant:
    """Without ``site``: what an editable installation does at start-up is not counted."""
    gate = asyncio.Semaphore(4 * (os.cpu_count() or 1))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": sysconfig.get_path("purelib")}

    async def run(request: RunRequest) -> RunResult:
        async with gate:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-c", request.code),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
            try:
                out, err = await asyncio.wait_for(child.communicate(), request.limits.wall_seconds)
            except TimeoutError:
                child.kill()
                await child.wait()
                return RunResult(status=RunStatus.TIMEOUT)
        status = RunStatus.ERROR if child.returncode else RunStatus.SUCCESS
        return RunResult(status=status, stdout=out.decode(), stderr=err.decode())

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    return Contestant("fresh", run, cpu)


@contextlib.asynccontextmanager
async def our_service(name: str, python: str) -> AsyncIterator[Contestant]:
    """The service that an interpreter has installed, in a process of its own."""
    code = (
        "from agent_r1.sandbox.embedded import EmbeddedExecutor\n"
        "from agent_r1.sandbox.serve import serve\n"
        "executor = EmbeddedExecutor()\n"
        "try: serve(executor, port=0, ready=lambda url: print(url, flush=True))\n"
        "finally: executor.close()\n"
    )
    child = subprocess.Popen([python, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = await asyncio.to_thread(child.stdout.readline)
        yield over_http(url.strip(), name, child.pid)
    finally:
        child.terminate()
        child.wait(60)


@contextlib.asynccontextmanager
async def contestants(options: argparse.Namespace) -> AsyncIterator[list[Contestant]]:
    from agent_r1.sandbox.embedded import EmbeddedExecutor

    async with contextlib.AsyncExitStack() as stack:
        services = [await stack.enter_async_context(our_service("service", sys.executable))]
        if options.before:
            before = our_service("before", options.before)
            services.append(await stack.enter_async_context(before))
        executor = EmbeddedExecutor()
        own = os.getpid()

        def embedded_cpu() -> float:
            return tree_cpu(own) - sum(service.cpu_seconds() for service in services)

        rivals = [*services, Contestant("embedded", executor.arun, embedded_cpu)]
        if options.peer:
            rivals.append(over_http(options.peer, "peer", listener_of(options.peer)))
        rivals.append(fresh_interpreters())
        try:
            yield [rival for rival in rivals if rival.name not in options.without]
        finally:
            executor.close()


async def compete(options: argparse.Namespace) -> list[Sample]:
    samples: dict[tuple[str, str, int], Sample] = {}
    async with contestants(options) as rivals:
        for name in options.workloads:
            for rival in rivals:  # libraries loaded, pools filled
                warm = Sample(rival.name, name, 8)
                await measure(rival, name, warm, 0.5)
            for concurrency in options.concurrency:
                for number in range(options.rounds):
                    for rival in rivals if number % 2 == 0 else rivals[::-1]:
                        key = (rival.name, name, concurrency)
                        sample = samples.setdefault(key, Sample(*key))
                        await measure(rival, name, sample, options.seconds)
                report(name, concurrency, [samples[r.name, name, concurrency] for r in rivals])
    return list(samples.values())


def report(name: str, concurrency: int, row: list[Sample]) -> None:
    print(f"\n{name}, concurrency {concurrency}")
    ours = row[0].per_second
    for sample in row:
        facts = sample.summary()
        shown = {key: facts[key] for key in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms_per_request")}
        line = f"  {sample.contestant:9} {sample.per_second:8.1f}/s" + "".join(
            f"  {key.partition('_')[0]} {value:.2f}"
            for key, value in shown.items()
            if isinstance(value, float)
        )
        if sample is not row[0] and sample.per_second:
            line += f"  {row[0].contestant}/{sample.contestant} {ours / sample.per_second:.1f}x"
            if sample.contestant == "before":
                pairs = [a / b for a, b in zip(row[0].rates, sample.rates, strict=True)]
                line += f" (median of {len(pairs)} rounds {statistics.median(pairs):.3f}x)"
            bar = WORKLOADS[name].bar
            if sample.contestant == "peer" and concurrency == 32 and bar:
                line += f" (bar {bar:g}x)"
        if sample.loop_latencies:
            line += f"  loops {facts['loop_p50_ms']:.0f} ms, at most {facts['loop_max_ms']:.0f} ms"
        if sample.wrong:
            line += f"  WRONG {dict(sample.wrong.most_common(3))}"
        print(line, flush=True)


def table(rows: list[dict[str, object]]) -> str:
    """Programs per second (p50 ms, CPU ms) of every contestant, and our ratio to the others."""
    rivals = list(dict.fromkeys(str(row["contestant"]) for row in rows))
    by_key = {(r["workload"], r["concurrency"], r["contestant"]): r for r in rows}
    head = ["workload", "concurrency", *rivals, *(f"{rivals[0]} / {name}" for name in rivals[1:])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for workload, concurrency in dict.fromkeys((r["workload"], r["concurrency"]) for r in rows):
        facts = [by_key[workload, concurrency, name] for name in rivals]
        rates = [float(str(fact["per_second"])) for fact in facts]
        cells = [str(workload), str(concurrency)]
        cells += [
            f"{number(rate)}/s ({number(fact['p50_ms'])}, {number(fact['cpu_ms_per_request'])})"
            for rate, fact in zip(rates, facts, strict=True)
        ]
        cells += [f"{rates[0] / rate:.1f}" if rate else "-" for rate in rates[1:]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def number(value: object) -> str:
    if not isinstance(value, float):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, object]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpus": os.cpu_count(),
        "model": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg(),
    }


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(str(row["workload"]) for row in rows))
    rivals = list(dict.fromkeys(str(row["contestant"]) for row in rows))
    labels = {"peer": "SandboxFusion", "fresh": "fresh interpreter"}
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for rival in rivals:
            line = [r for r in rows if r["workload"] == name and r["contestant"] == rival]
            axis.plot(
                [r["concurrency"] for r in line],
                [r["per_second"] for r in line],
                marker="o",
                label=labels.get(rival, rival),
            )
        axis.set(title=name, xscale="log", yscale="log", xlabel="concurrency")
        axis.set_xticks(sorted({int(str(r["concurrency"])) for r in rows}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("programs per second")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", help="URL of a SandboxFusion server on this host")
    parser.add_argument("--before", help="interpreter of another checkout, to compare with")
    parser.add_argument("--workloads", "-w", type=split, default=list(WORKLOADS))
    parser.add_argument("--concurrency", "-c", type=split_numbers, default=[1, 8, 32, 128])
    parser.add_argument("--seconds", "-d", type=float, default=4.0, help="per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without", type=split, default=[], help="contestants to leave out")
    parser.add_argument("--out", type=Path, default=RESULTS / "sandbox_throughput")
    return parser.parse_args()


def split(text: str) -> list[str]:
    return text.split(",")


def split_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    options = arguments()
    host = machine()
    samples = uvloop.run(compete(options))
    rows = [sample.summary() for sample in samples]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"seconds": options.seconds, "rounds": options.rounds}
    document = {"machine": host, "settings": settings, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(rows))
    plot(rows, options.out.with_suffix(".png"))
    wrong = sum(sum(sample.wrong.values()) for sample in samples if sample.contestant != "peer")
    print(f"\nwritten to {options.out}.json, .md and .png; {wrong} wrong answers")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
