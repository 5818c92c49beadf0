"""Runs of many trajectories: how long they take to write, to index, to open and to search.

    python benchmarks/view_scale.py --trajectories 100000 --tokens 4000 --out scale.json

A made run is written by the store of training, indexed, and opened by a new process, which
asks its questions ``--rounds`` times; medians and the slowest are told, and the most memory
that the process ever took. Texts are words by Zipf's law; every trajectory has a word that
999 others share, and the most frequent words are in all of them. Disk: about 7 kB for each
1,000 tokens. The folder is removed at the end unless ``--keep``. ``--only`` does one part, in a
``--folder`` that is kept, for runs whose parts take long.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agent_r1.monitor.arrows import ArrowFile
from agent_r1.monitor.query import Query, RunIndex
from agent_r1.monitor.records import Stored
from agent_r1.types import Completion, Finish, Outcome, Reward, Task, ToolCall, Trajectory, Turn

WORDS = 50_000
PER_STEP = 512
SIBLINGS = 8
KINDS = 256
"""Different texts; what a trajectory has of its own is its identity, its word and its numbers."""

QUERIES = {
    "newest": Query(),
    "filter": Query(split="train", outcome="length", reward_max=0.0, tool_error=True),
    "sort": Query(sort="tokens"),
    "spread": Query(sort="spread"),
    "rare word": Query(text="needle3"),
    "rare word, filtered": Query(text="needle3", success=True, sort="reward"),
    "word of all": Query(text="ubiquitous"),
    "words of all, sorted": Query(text="problem ubiquitous", sort="reward"),
    "one letter": Query(text="u"),
    "three letters": Query(text="ubi"),
    "two words": Query(text="ubiquitous needle7"),
    "last page": Query(descending=False, sort="seconds", offset=10**9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="Where the run is made.")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["write", "index", "ask"])
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    try:
        if options.only in (None, "write"):
            report |= write(folder, options.trajectories, options.tokens)
        if options.only in (None, "index"):
            report |= index(folder)
        if options.only == "ask":
            report |= ask(folder, options.rounds)
        elif options.only is None:
            report |= ask_anew(folder, options.rounds)
    finally:
        if not options.keep and options.only is None:
            shutil.rmtree(folder)
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def ask_anew(folder: Path, rounds: int) -> dict[str, Any]:
    """In a process of its own, so that its memory is that of a reader."""
    command = [sys.executable, __file__, "--only", "ask", "--folder", str(folder)]
    command += ["--rounds", str(rounds)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(child.stdout))


def write(folder: Path, count: int, tokens: int) -> dict[str, float]:
    kinds = make(tokens)
    file = ArrowFile(folder / "trajectories.arrows")
    seconds = 0.0
    for step, first in enumerate(range(0, count, PER_STEP)):
        rows = [
            Stored(one(kinds, i, step), step, "train")
            for i in range(first, min(first + PER_STEP, count))
        ]
        began = time.perf_counter()
        file.append(rows)
        seconds += time.perf_counter() - began
    file.close()
    size = (folder / "trajectories.arrows").stat().st_size
    return {
        "trajectories": count,
        "tokens": tokens,
        "write_ms_each": round(seconds / count * 1000, 3),
        "kilobytes_each": round(size / count / 1000, 3),
        "gigabytes": round(size / 1e9, 3),
    }


def index(folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    found = RunIndex(folder)
    while found.pending:
        found.refresh(5.0)
    count = found.count
    found.close()
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in folder.glob("index.sqlite*"))
    return {
        "index_ms_each": round(seconds / count * 1000, 3),
        "index_gigabytes": round(size / 1e9, 3),
    }


def ask(folder: Path, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    found = RunIndex(folder)
    found.page(Query())
    opened = time.perf_counter() - began
    questions: dict[str, Callable[[], Any]] = {
        name: lambda query=query: found.page(query) for name, query in QUERIES.items()
    }
    questions |= {
        "histogram": lambda: found.histogram("reward", Query(outcome="finished")),
        "steps": found.steps,
        "sources": lambda: found.counts("source", Query()),
        "one trajectory": lambda: found.trajectory(str(found.count // 3)),
        "siblings": lambda: found.siblings(str(found.count // 3)),
    }
    taken: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(rounds):
        for name, question in questions.items():
            found.forget()
            began = time.perf_counter()
            question()
            taken[name].append((time.perf_counter() - began) * 1000)
    return {
        "found": found.count,
        "open_ms": round(opened * 1000, 1),
        "median_ms": {name: round(statistics.median(all_), 1) for name, all_ in taken.items()},
        "slowest_ms": {name: round(max(all_), 1) for name, all_ in taken.items()},
        "memory_megabytes": peak_memory(),
    }


def peak_memory() -> int:
    """Megabytes of this program; getrusage would count the parent's before the start."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def one(kinds: list[Trajectory], i: int, step: int) -> Trajectory:
    kind, outcome = kinds[i % KINDS], list(Outcome)[i % 4]
    first = kind.turns[0]
    own = replace(
        first,
        text=f"{first.text} ubiquitous needle{i // 1000}",
        completion=replace(first.completion, versions=((0, step),)),
        tool_calls=(ToolCall(i % 7 != 0, 0.1),),
    )
    reward = float(i % 3 == 0)
    return replace(
        kind,
        task=Task(f"task-{i // SIBLINGS}", "a problem", "1", "made"),
        group_id=f"{step}.0.{i // SIBLINGS}",
        index=i % SIBLINGS,
        turns=(own, *kind.turns[1:]),
        outcome=outcome,
        reward=None if i % 50 == 0 else Reward(reward, {"accuracy": reward}),
        seconds=float(i % 977),
    )


def make(tokens: int) -> list[Trajectory]:
    """Trajectories of four turns, half of their tokens the environment's."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (WORDS, 7), dtype=np.uint8)
    vocabulary = [" " + bytes(row[: 2 + i % 5]).decode() for i, row in enumerate(letters)]
    share = 1 / np.arange(1, WORDS + 1)
    draws: Iterator[int] = iter(rng.choice(WORDS, KINDS * tokens, p=share / share.sum()).tolist())
    half = max(1, tokens // 8)
    kinds = []
    for _ in range(KINDS):
        context: tuple[int, ...] = (1, 2, 3)
        turns = []
        for _ in range(4):
            ids = tuple(next(draws) for _ in range(half))
            seen = tuple(next(draws) for _ in range(half))
            sure = -(np.abs(rng.standard_normal(half).astype(np.float32)) ** 3)
            turn = Turn(
                prompt_ids=context,
                completion=Completion(ids, tuple(sure.tolist()), Finish.STOP),
                text="".join(vocabulary[i] for i in ids),
                observation_ids=seen,
                observation_text="".join(vocabulary[i] for i in seen),
            )
            turns.append(turn)
            context = turn.next_prompt_ids
        kinds.append(Trajectory(Task("t", "p"), "g", 0, tuple(turns), Outcome.FINISHED))
    return kinds


if __name__ == "__main__":
    main()
