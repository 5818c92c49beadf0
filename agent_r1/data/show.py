"""Tasks in words, for a person who wants to see what a configuration reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agent_r1.config.task import DataConfig
from agent_r1.data.sources import load_configured
from agent_r1.messages import in_words
from agent_r1.types import Task

_BAD_ROWS_SHOWN = 20


def describe_tasks(config: DataConfig, split: str, seed: int, count: int) -> Iterator[str]:
    """Lines about a split: how many tasks of which source, the first ones, the bad rows.

    Raises:
        DataError: a source cannot be read or gives no task at all.
        RegistryError: there is no such generator.
    """
    files = config.train_files if split == "train" else config.val_files
    endless = any(file.startswith("generator:") for file in files)
    loaded = load_configured(config, split, seed, max_samples=max(count, 1) if endless else None)
    sources = Counter(task.data_source for task in loaded.tasks)
    yield f"{len(loaded.tasks)} {split} tasks: " + ", ".join(
        f"{number} {source}" for source, number in sources.most_common()
    )
    for task in loaded.tasks[:count]:
        yield from _describe(task)
    if loaded.bad:
        yield f"\n{len(loaded.bad)} rows are no tasks:"
        yield from (f"  {row}" for row in loaded.bad[:_BAD_ROWS_SHOWN])
        if len(loaded.bad) > _BAD_ROWS_SHOWN:
            yield "  ..."


def _describe(task: Task) -> Iterator[str]:
    yield f"\n--- {task.id} ({task.data_source}), answer: {task.answer}"
    if task.tools:
        yield f"tools: {', '.join(tool['function']['name'] for tool in task.tools)}"
    if isinstance(task.prompt, str):
        yield task.prompt
        return
    for message in task.prompt:
        yield f"[{message['role']}] {in_words(message)}"
