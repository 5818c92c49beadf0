"""Tasks in words, for a person who wants to see what a configuration reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agent_r1.config.task import DataConfig
from agent_r1.data.sources import Columns, load_tasks
from agent_r1.types import Task

_BAD_ROWS_SHOWN = 20


def describe_tasks(config: DataConfig, split: str, seed: int, count: int) -> Iterator[str]:
    """Lines about a split: how many tasks of which source, the first ones, the bad rows.

    Raises:
        DataError: a source cannot be read or gives no task at all.
        RegistryError: there is no such generator.
    """
    training = split == "train"
    files = config.train_files if training else config.val_files
    limit = config.train_max_samples if training else config.val_max_samples
    if limit is None and any(file.startswith("generator:") for file in files):
        limit = max(count, 1)  # a generator may be endless
    loaded = load_tasks(
        files,
        columns=Columns(prompt=config.prompt_key, answer=config.answer_key),
        split=split,
        seed=seed if config.seed is None else config.seed,
        options={**config.generator_kwargs, **({} if training else config.val_generator_kwargs)},
        max_samples=limit,
    )
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
    if isinstance(task.prompt, str):
        yield task.prompt
        return
    for message in task.prompt:
        yield f"[{message['role']}] {message['content']}"
