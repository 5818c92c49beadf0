"""Parquet files in verl's schema, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_r1.data.prepare.clean import fingerprint
from agent_r1.data.prepare.problems import Dropped, Problem
from agent_r1.data.prepare.prompts import fill
from agent_r1.errors import DataError
from agent_r1.types import Message


def divide(
    problems: Sequence[Problem], val_size: int, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Training and validation problems; equal questions are always on the same side.

    Which side a question is on depends on ``seed`` and its own text, not on the order of
    the file, so a question that is added elsewhere moves few others.

    Raises:
        DataError: nothing would be left to train on.
    """
    if val_size == 0:
        return list(problems), []
    if val_size >= len(problems):
        raise DataError(
            f"{val_size} validation problems leave nothing of {len(problems)} to train on; "
            "lower --val-size"
        )
    drawn = sorted(range(len(problems)), key=lambda i: (_draw(seed, problems[i]), problems[i].row))
    chosen = set(drawn[:val_size])
    keys = {fingerprint(problems[i].question) for i in chosen}
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        sides[fingerprint(problem.question) in keys].append(problem)
    return sides


def _draw(seed: int, problem: Problem) -> bytes:
    key = f"{seed}/".encode() + fingerprint(problem.question)
    return hashlib.blake2b(key, digest_size=16).digest()


def as_rows(
    problems: Iterable[Problem],
    *,
    split: str,
    data_source: str,
    ability: str,
    prompt: str,
    system: str | None,
    answer: Callable[[Problem], str | list[str]] = lambda problem: problem.answer,
) -> list[dict[str, Any]]:
    """Rows in verl's schema. ``extra_info.question`` is the question without the prompt's text.

    ``answer`` gives what stands under ``ground_truth``: one answer, or all acceptable ones.
    """
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    return [
        {
            "data_source": data_source,
            "prompt": [*before, {"role": "user", "content": fill(prompt, problem.question)}],
            "ability": ability,
            "reward_model": {"style": "rule", "ground_truth": answer(problem)},
            "extra_info": {
                "split": split,
                "index": index,
                "question": problem.question,
                "source_file": problem.file,
                "source_row": problem.row,
                **{key: str(value) for key, value in problem.extra.items()},
            },
        }
        for index, problem in enumerate(problems)
    ]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    extra = list(dict.fromkeys(key for row in rows for key in row["extra_info"]))
    text = pyarrow.string()
    many = any(isinstance(row["reward_model"]["ground_truth"], list) for row in rows)
    answer = pyarrow.list_(text) if many else text
    schema = pyarrow.schema(
        {
            "data_source": text,
            "prompt": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pyarrow.struct({"style": text, "ground_truth": answer}),
            "extra_info": pyarrow.struct(
                {key: pyarrow.int64() if key in _NUMBERS else text for key in extra}
            ),
        }
    )
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    _whole(path, lambda part: pyarrow.parquet.write_table(table, part))


_NUMBERS = frozenset({"index", "source_row"})


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    write_lines(path, (item.as_json() for item in dropped))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
    _whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
