"""Tasks in words, for a person who wants to see what a configuration reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from agent_r1.config.environments import environment_configs
from agent_r1.config.schema import Config
from agent_r1.data.split import look
from agent_r1.messages import in_words
from agent_r1.types import Task

_BAD_ROWS_SHOWN = 20


def describe_tasks(config: Config, split: str, count: int) -> Iterator[str]:
    """Lines about a split: how many tasks of which source, the first ones, the bad rows.

    In a run with several environments, each of them with its own.

    Raises:
        DataError: a source cannot be read or gives no task at all; a task names no environment
            of the run.
        RegistryError: there is no such generator.
    """
    found, bad = look(config, split, at_most=max(count, 1))
    for position, (env, tasks) in enumerate(found.items()):
        sources = Counter(task.data_source for task in tasks).most_common()
        told = ", ".join(f"{number} {source}" for source, number in sources)
        where = ("\n" if position else "") + (f"{env}: " if env else "")
        first = (
            "the first " if env in _unbounded(config, split) and len(tasks) == max(count, 1) else ""
        )
        yield f"{where}{first}{len(tasks)} {split} tasks: {told}"
        for task in tasks[:count]:
            yield from _describe(task)
    if bad:
        yield f"\n{len(bad)} rows are no tasks:"
        yield from (f"  {row}" for row in bad[:_BAD_ROWS_SHOWN])
        if len(bad) > _BAD_ROWS_SHOWN:
            yield "  ..."


def _unbounded(config: Config, split: str) -> set[str]:
    """The environments whose generators are read only as far as asked."""
    return {
        each.name
        for each in environment_configs(config)
        for source in getattr(each.config.data, f"{split}_files")
        if source.startswith("generator:")
    }


def _describe(task: Task) -> Iterator[str]:
    yield f"\n--- {task.id} ({task.data_source}), answer: {task.answer}"
    if task.tools:
        yield f"tools: {', '.join(tool['function']['name'] for tool in task.tools)}"
    if isinstance(task.prompt, str):
        yield task.prompt
        return
    for message in task.prompt:
        yield f"[{message['role']}] {in_words(message)}"
