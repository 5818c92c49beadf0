"""What adapters share: the package behind one, how a task sets it up, how it is quoted."""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

from agent_r1.errors import ConfigError
from agent_r1.tool.protocol import Observation
from agent_r1.types import Task

ACTION_PATTERN = r"<action>(.*?)</action>"


def require_package(module: str, extra: str) -> Any:
    """Import ``module``, or raise a :class:`ConfigError` that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.split(".")[0] == error.name.split(".")[0]:
            raise ConfigError(
                f"tool.env={extra} needs the package {module.split('.')[0]}: "
                f"pip install 'agent-r1[{extra}]'"
            ) from error
        raise ConfigError(f"the package {module} cannot be imported: {error}") from error


def task_seed(task: Task) -> int:
    """The ``seed`` of a task, or one that follows from its id: siblings begin alike."""
    given = task.extra.get("seed")
    return zlib.crc32(task.id.encode()) if given is None else int(given)


def task_options(task: Task, configured: Mapping[str, Any]) -> dict[str, Any]:
    """``configured`` options, and over them those of the task's column ``options``.

    Raises:
        ConfigError: the column holds something else than options.
    """
    given = task.extra.get("options")
    if given is None:
        return dict(configured)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"the column 'options' of task {task.id!r} holds {given!r:.80}; it must hold options "
            "by name, or have another name"
        )
    return {**configured, **{str(k): v for k, v in given.items() if v is not None}}


def said(task: Task, text: str) -> Observation:
    """``text`` as the task's prompt is written: a user message of a chat, else plain text."""
    if isinstance(task.prompt, str):
        return f"\n{text}\n"
    return ({"role": "user", "content": text},)


def quoted_action(action: str, pattern: re.Pattern[str]) -> str:
    """The part of a turn that names the action: the last match of ``pattern``, else all of it."""
    found = pattern.findall(action)
    return (found[-1] if found else action).strip()


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern of ``tool.env_kwargs.action_pattern``. Raises :class:`ConfigError`."""
    try:
        made = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"action_pattern={pattern!r} is no regular expression: {error}") from None
    if made.groups != 1:
        raise ConfigError(
            f"action_pattern={pattern!r} must have exactly one group, around the action, as "
            f"{ACTION_PATTERN!r} has"
        )
    return made


def plain(value: Any, depth: int = 4) -> Any:
    """``value`` in JSON's types where that says it; what has no such form is left out."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth and isinstance(value, Mapping):
        return {str(k): plain(v, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain(v, depth - 1) for v in value]
    return None
