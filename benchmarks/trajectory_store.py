"""How trajectories of thousands of tokens are best kept: size, and seconds to write and read.

    python benchmarks/trajectory_store.py --out docs/results/trajectory_store.json

Made trajectories of ``--tokens`` tokens in four turns, half of them the environment's. Token
ids follow Zipf's law over 50,000 words, and text is made of the same words, so that it
compresses as language does and not as noise or as one repeated line would. Every way of
keeping them holds the same values; the ways take turns, and the median of the rounds is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agent_r1.monitor.arrows import ArrowFile, read_arrows
from agent_r1.monitor.jsonl import JsonlFile, encode, read_jsonl
from agent_r1.monitor.records import Stored, encode_trajectory
from agent_r1.types import Completion, Finish, Outcome, Reward, Task, Trajectory, Turn

WORDS = 50_000
TURNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trajectories = make(options.count, options.tokens)
    ways = {"jsonl": (write_jsonl, read_lines), "arrow_zstd": (write_arrows, read_stream)}
    ways |= {"jsonl_zstd": (write_zstd, read_zstd), "parquet_zstd": (write_parquet, read_parquet)}
    with tempfile.TemporaryDirectory() as folder:
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (write, read) in ways.items():
                taken[name].append(measure(write, read, trajectories, Path(folder) / name))
    report = {"tokens": options.tokens, "trajectories": options.count} | {
        name: {
            key: round(statistics.median(row[key] for row in rows), 3) for key in sorted(rows[0])
        }
        for name, rows in taken.items()
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(
    write: Callable[[Sequence[Trajectory], Path], None],
    read: Callable[[Path], int],
    trajectories: Sequence[Trajectory],
    path: Path,
) -> dict[str, float]:
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    write(trajectories, path)
    written = time.perf_counter()
    count = read(path)
    ended = time.perf_counter()
    assert count == len(trajectories)
    return {
        "kilobytes_each": path.stat().st_size / len(trajectories) / 1000,
        "write_ms_each": (written - began) / len(trajectories) * 1000,
        "read_ms_each": (ended - written) / len(trajectories) * 1000,
    }


def encoded(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    return [encode_trajectory(t, step=1, split="train") for t in trajectories]


def write_jsonl(trajectories: Sequence[Trajectory], path: Path) -> None:
    file = JsonlFile(path)
    file.append(encoded(trajectories))
    file.close()


def write_arrows(trajectories: Sequence[Trajectory], path: Path) -> None:
    """As runs write them."""
    file = ArrowFile(path)
    file.append([Stored(t, 1, "train") for t in trajectories])
    file.close()


def read_stream(path: Path) -> int:
    return sum(1 for _ in read_arrows(path))


def read_lines(path: Path) -> int:
    return sum(1 for _ in read_jsonl(path))


def write_zstd(trajectories: Sequence[Trajectory], path: Path) -> None:
    """One frame of the step's lines, behind its two lengths."""
    data = b"".join(encode(record) + b"\n" for record in encoded(trajectories))
    packed = pa.compress(data, codec="zstd", asbytes=True)
    lengths = len(data).to_bytes(8, "little") + len(packed).to_bytes(8, "little")
    path.write_bytes(lengths + packed)


def read_zstd(path: Path) -> int:
    data = path.read_bytes()
    lines = pa.decompress(data[16:], int.from_bytes(data[:8], "little"), "zstd", asbytes=True)
    return sum(1 for line in lines.splitlines() if msgspec.json.decode(line))


def write_parquet(trajectories: Sequence[Trajectory], path: Path) -> None:
    """Ids and log-probabilities as columns of lists; all the rest as the JSON it is."""
    columns: dict[str, list[Any]] = {"rest": [], "ids": [], "logprobs": []}
    for record in encoded(trajectories):
        ids: list[np.ndarray] = []
        logprobs: list[np.ndarray] = []
        turns = []
        for turn in record["turns"]:
            ids += [np.asarray(turn[k] or (), np.int32) for k in LISTS]
            logprobs.append(np.asarray(turn["logprobs"], np.float64))
            turns.append(turn | {"logprobs": None} | {k: len(turn[k] or ()) for k in LISTS})
        columns["rest"].append(encode(record | {"turns": turns}))
        columns["ids"].append(np.concatenate(ids))
        columns["logprobs"].append(np.concatenate(logprobs))
    table = pa.table(
        {
            "rest": pa.array(columns["rest"], pa.binary()),
            "ids": pa.array(columns["ids"], pa.list_(pa.int32())),
            "logprobs": pa.array(columns["logprobs"], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, path, compression="zstd", row_group_size=64)


LISTS = ("prompt_ids", "token_ids", "observation_ids")


def read_parquet(path: Path) -> int:
    table = pq.read_table(path)
    for name in ("ids", "logprobs"):
        for row in table[name].to_pylist():
            assert row
    return sum(1 for row in table["rest"].to_pylist() if msgspec.json.decode(row))


def make(count: int, tokens: int) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, (WORDS, 7), dtype=np.uint8)
    vocabulary = [" " + bytes(row[: 2 + i % 5]).decode() for i, row in enumerate(letters)]
    share = 1 / np.arange(1, WORDS + 1)
    half = tokens // (2 * TURNS)
    trajectories = []
    for index in range(count):
        context = tuple(int(i) for i in rng.choice(WORDS, 100, p=share / share.sum()))
        turns = []
        for _ in range(TURNS):
            ids = rng.choice(WORDS, 2 * half, p=share / share.sum()).tolist()
            sure = -(np.abs(rng.standard_normal(half).astype(np.float32)) ** 3)
            written, seen = tuple(ids[:half]), tuple(ids[half:])
            turn = Turn(
                prompt_ids=context,
                completion=Completion(
                    token_ids=written,
                    logprobs=tuple(float(v) for v in sure),
                    finish=Finish.STOP,
                    versions=((0, 1),),
                ),
                text="".join(vocabulary[i] for i in written),
                observation_ids=seen,
                observation_text="".join(vocabulary[i] for i in seen),
            )
            turns.append(turn)
            context = turn.next_prompt_ids
        task = Task(id=f"t{index // 8}", prompt="a problem", answer="1", data_source="made")
        reward = Reward(float(index % 2), {"accuracy": float(index % 2)})
        trajectories.append(
            Trajectory(task, f"g{index // 8}", index % 8, tuple(turns), Outcome.FINISHED, reward)
        )
    return trajectories


if __name__ == "__main__":
    main()
