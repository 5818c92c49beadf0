"""Counters and histograms in Prometheus' text format, for one event loop, without a library."""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PREFIX = "agent_r1_sandbox_"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Histogram:
    """Observed seconds, counted per bucket; cumulative only when written."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        cumulative = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.counts, strict=True):
            cumulative += count
            yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {cumulative}'
        yield f"{PREFIX}{name}_sum {self.total:.6f}"
        yield f"{PREFIX}{name}_count {cumulative}"


@dataclass(slots=True)
class Metrics:
    """What a service counts. Label values must come from a closed set, never from a request."""

    requests: dict[Labels, int] = field(default_factory=dict)
    runs: dict[Labels, int] = field(default_factory=dict)
    refusals: dict[Labels, int] = field(default_factory=dict)
    run_seconds: Histogram = field(default_factory=Histogram)
    queue_seconds: Histogram = field(default_factory=Histogram)
    started: float = field(default_factory=time.time)

    def text(self, gauges: Mapping[str, float]) -> str:
        """The page of ``/metrics``."""
        lines = [
            *_counter("requests_total", "HTTP requests by path and status code.", self.requests),
            *_counter("runs_total", "Programs by language and outcome.", self.runs),
            *_counter("refused_total", "Requests not run, by reason.", self.refusals),
            *_header("run_seconds", "histogram", "Wall-clock time of programs."),
            *self.run_seconds.lines("run_seconds"),
            *_header("queue_seconds", "histogram", "Time that requests waited for a slot."),
            *self.queue_seconds.lines("queue_seconds"),
        ]
        for name, value in {**gauges, **process_gauges(), "start_time": self.started}.items():
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name} {value:.15g}"]
        return "\n".join(lines) + "\n"


def count(counter: dict[Labels, int], *labels: tuple[str, str]) -> None:
    """Add one to the counter under these labels."""
    counter[labels] = counter.get(labels, 0) + 1


def process_gauges() -> dict[str, float]:
    """Memory, CPU time and descriptors of this process (not of the programs that it runs)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return {
        "process_resident_memory_bytes": float(pages * os.sysconf("SC_PAGE_SIZE")),
        "process_cpu_seconds": usage.ru_utime + usage.ru_stime,
        "process_open_fds": float(len(os.listdir("/proc/self/fd"))),
    }


def _counter(name: str, help_text: str, values: Mapping[Labels, int]) -> Iterator[str]:
    yield from _header(name, "counter", help_text)
    for labels, value in sorted(values.items()):
        inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
        yield f"{PREFIX}{name}{{{inner}}} {value}"


def _header(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {help_text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
