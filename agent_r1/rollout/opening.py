"""The opening of an episode: the task's prompt, and what its environment and tools add to it."""

from __future__ import annotations

from dataclasses import replace

from agent_r1.rollout.endpoint.messages import in_words
from agent_r1.tool.protocol import Start
from agent_r1.types import Message, Task


def announced(task: Task, start: Start = Start()) -> Start:  # noqa: B008  # frozen
    """The opening with the task's own functions; one of the environment counts before them."""
    if not task.tools:
        return start
    names = {tool.get("function", tool).get("name") for tool in start.tools}
    own = tuple(tool for tool in task.tools if tool["function"]["name"] not in names)
    return replace(start, tools=(*start.tools, *own))


def opened_messages(task: Task, start: Start) -> tuple[Message, ...]:
    """The opening as messages, for models that are reached by messages only; tools in words."""
    prompt = opened(task.prompt, start)
    if isinstance(prompt, str):
        prompt = ({"role": "user", "content": prompt},)
    words = [start.system, in_words(start.tools) if start.tools else ""]
    return with_system(prompt, "\n\n".join(filter(None, words)))


def opened(prompt: tuple[Message, ...] | str, start: Start) -> tuple[Message, ...] | str:
    """The prompt with what the environment says at first."""
    said = start.messages
    if said is None:
        return prompt
    if not isinstance(said, str):
        return tuple(said)
    if isinstance(prompt, str):
        return prompt + said
    if prompt and prompt[-1].get("role") == "user" and isinstance(prompt[-1]["content"], str):
        joined = "\n\n".join(filter(None, (prompt[-1]["content"], said)))
        return (*prompt[:-1], {**prompt[-1], "content": joined})
    return (*prompt, {"role": "user", "content": said})


def with_system(prompt: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """Messages with ``system`` at the end of their system message, which is made if missing."""
    if not system:
        return prompt
    if prompt and prompt[0].get("role") == "system":
        joined = f"{prompt[0]['content']}\n\n{system}"
        return ({"role": "system", "content": joined}, *prompt[1:])
    return ({"role": "system", "content": system}, *prompt)
