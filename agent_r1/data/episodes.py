"""Tasks for environments that know the task themselves: a game, a simulator, a server.

Such a task is a seed, by which ``reset`` draws the episode, and the words around it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from agent_r1.data.sources import endless
from agent_r1.types import Task


@endless
def episodes(
    split: str = "train",
    seed: int = 0,
    *,
    prompt: str = "Play the following game.",
    chat: bool = True,
    data_source: str = "episodes",
    options: Mapping[str, Any] | None = None,
) -> Iterator[Task]:
    """An endless stream of seeds (``generator:episodes``); training and validation share none.

    Args:
        split: ``train`` has the even seeds, anything else the odd ones.
        seed: where the stream begins.
        prompt: what is said before the environment speaks.
        chat: whether it is a user message, or text that goes on as it stands.
        data_source: the name under which metrics group these tasks.
        options: options of the environment for these tasks, over the configured ones.
    """
    first = 2 * (seed * 1_000_003) + (split != "train")
    for number in itertools.count():
        drawn = (first + 2 * number) % (1 << 32)
        yield Task(
            id=f"{data_source}/{split}/{drawn}",
            prompt=({"role": "user", "content": prompt},) if chat else prompt,
            data_source=data_source,
            extra={"seed": drawn, **({"options": dict(options)} if options else {})},
        )
