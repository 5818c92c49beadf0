"""From annotated files to a file of traces, every row accounted for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from agent_r1.data.cold_start import gsm8k, mathcoder
from agent_r1.data.cold_start.play import Draft, Played, Prompt, Rejected, play
from agent_r1.data.prepare.prompts import fill, prompt_text
from agent_r1.data.sources_files import Row, read_rows
from agent_r1.data.traces import write_traces
from agent_r1.errors import DataError
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Message

Drafts = Callable[[Iterable[Row]], Iterator[Draft | Rejected]]

FORMATS: dict[str, Drafts] = {gsm8k.SOURCE: gsm8k.drafts, mathcoder.SOURCE: mathcoder.drafts}
"""Annotations that can be turned into drafts, by name."""


async def make_traces(
    name: str,
    files: Sequence[Path],
    env: BaseToolEnv,
    out: Path,
    *,
    prompt: str = "retool",
    system: str | None = None,
    limit: int | None = None,
    on_finished: Callable[[], None] = lambda: None,
) -> Played:
    """Write the traces of ``files`` to ``out``, and the rejected rows beside it.

    ``prompt`` is a style or a file, as for preparing tasks: a cold start should see the
    prompt that later training uses. ``limit`` bounds the rows that are read.

    Raises:
        DataError: a file cannot be read, or no row of them gives a trace.
    """
    if out.exists():
        raise DataError(f"{out} exists already; name another file or remove it")
    text = prompt_text(prompt)
    rows = itertools.chain.from_iterable(read_rows(file) for file in files)
    drafts = FORMATS[name](itertools.islice(rows, limit))
    played = await play(
        drafts,
        env,
        lambda question: _messages(fill(text, question), system),
        on_finished=on_finished,
    )
    if not played.traces:
        raise DataError(f"no row of {', '.join(map(str, files))} gives a trace: {played.reasons()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_rejected(rejected_file(out), played.rejected)
    write_traces(out, played.traces)
    return played


def rejected_file(out: Path) -> Path:
    """Where the rows that gave no trace are named."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def _messages(text: str, system: str | None) -> Prompt:
    user: Message = {"role": "user", "content": text}
    return ({"role": "system", "content": system}, user) if system else (user,)


def _write_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for each in rejected:
            line = {"row": each.number, "reason": each.reason, "detail": each.detail}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
