"""Files and generators in, tasks out. Nothing is dropped without being counted.

A file in verl's schema (``data_source, prompt, ability, reward_model.ground_truth,
extra_info``) is read as it is; any other table with a :class:`Columns` that says where
the prompt and the answer are.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from agent_r1.config.task import DataConfig
from agent_r1.data.patience import told
from agent_r1.data.sources_files import Row, read_rows, require_file
from agent_r1.errors import ConfigError, DataError
from agent_r1.messages import read_messages, read_tools
from agent_r1.registry import Registry, nearest
from agent_r1.types import Message, Task

TaskGenerator: TypeAlias = Callable[..., Iterable[Task]]
"""``(split: str, seed: int, **options) -> Iterable[Task]``; equal arguments, equal tasks.

``split`` is ``"train"`` or ``"val"``. The two must not overlap. A generator that never ends
(:func:`endless`), or gives more than :data:`ENDLESS` tasks, needs a number of samples in the
configuration.
"""

GENERATORS: Registry[TaskGenerator] = Registry(
    "task generator",
    group="agent_r1.generators",
    builtin={
        "arithmetic": "agent_r1.recipes.arithmetic:tasks",
        "episodes": "agent_r1.data.episodes:episodes",
        "verifiers": "agent_r1.tool.foreign.verifiers:tasks",
    },
    check=lambda entry: None if callable(entry) else f"{entry!r} is no function",
)

_PREFIX = "generator:"
_SHOWN = 10

ENDLESS = 100_000
"""A generator that gives more tasks than this counts as endless: it needs a number of samples."""


def endless(function: TaskGenerator) -> TaskGenerator:
    """Mark a generator that never ends, so that a missing number of samples is found at once."""
    function.endless = True  # type: ignore[attr-defined]  # functions take attributes
    return function


def register_generator(name: str) -> Callable[[TaskGenerator], TaskGenerator]:
    """Decorator: make a generator available as ``data.train_files=[generator:NAME]``."""
    return GENERATORS.register(name)


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps what a task needs. Dots descend into nested columns.

    ``template`` turns the prompt column's text into the prompt; ``{prompt}`` stands for it
    (other braces are left alone). ``chat`` makes a user message of plain text; without it
    plain text is continued as it stands, which suits models without a chat template.
    ``system`` is put before the messages that have no system message. ``tools`` may hold
    functions that are announced with this row only, as a list or its JSON text. ``env`` names
    the row's environment, which matters in a run with several.
    """

    prompt: str = "prompt"
    answer: str = "reward_model.ground_truth"
    data_source: str = "data_source"
    id: str | None = None
    env: str = "env"
    template: str | None = None
    chat: bool = False
    system: str | None = None
    tools: str = "tools"

    def __post_init__(self) -> None:
        if self.template is not None and "{prompt}" not in self.template:
            raise ConfigError(
                f"data.prompt_template={self.template!r:.60} does not say where the prompt goes; "
                "write {prompt} in it"
            )

    @classmethod
    def configured(cls, data: DataConfig) -> Columns:
        """As the ``data`` section says."""
        return cls(
            prompt=data.prompt_key,
            answer=data.answer_key,
            data_source=data.data_source_key,
            id=data.id_key,
            env=data.env_key,
            template=data.prompt_template,
            chat=data.apply_chat_template,
            system=data.system_prompt,
        )


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no usable task, and why."""

    source: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, row {self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks, and the rows that are none."""

    tasks: tuple[Task, ...]
    bad: tuple[BadRow, ...] = ()

    def strict(self) -> tuple[Task, ...]:
        """The tasks, if every row was one.

        Raises:
            DataError: lists the first ten bad rows and says how many there are.
        """
        if self.bad:
            raise DataError(
                f"{len(self.bad)} of {len(self.bad) + len(self.tasks)} rows are no usable tasks:\n"
                + "\n".join(f"  {row}" for row in self.bad[:_SHOWN])
                + ("\n  ..." if len(self.bad) > _SHOWN else "")
            )
        return self.tasks


def load_tasks(
    sources: Sequence[str | Path],
    *,
    columns: Columns | None = None,
    split: str = "train",
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    max_samples: int | None = None,
) -> Loaded:
    """Tasks of several files and generators, in their order.

    ``options`` go to generators. ``max_samples`` bounds all of them together. Task ids are
    unique: where no id column says otherwise, file name and row. Of several generators, those
    after the first put their name before their ids.

    Raises:
        DataError: a source cannot be read, lacks a column, or gives no task at all.
        RegistryError: there is no such generator.
    """
    columns = columns or Columns()
    tasks: list[Task] = []
    bad: list[BadRow] = []
    seen: dict[str, str] = {}
    if max_samples is None:
        _refuse_endless(sources, split)
    for item, source in _items(sources, columns, split, seed, options or {}):
        if max_samples is None and len(tasks) >= ENDLESS and source.startswith(_PREFIX):
            raise _no_end(f"{source} gives more than {ENDLESS:,} tasks and may never end", split)
        if isinstance(item, BadRow):
            bad.append(item)
        elif item.id in seen:
            raise DataError(
                f"two tasks have the id {item.id!r}, from {seen[item.id]} and {source}; ids must "
                "be unique: "
                + (
                    "have the generator give each task an id of its own"
                    if source.startswith(_PREFIX)
                    else "choose another column with data.id_key, or none for row numbers"
                )
            )
        else:
            seen[item.id] = source
            tasks.append(item)
        if max_samples is not None and len(tasks) >= max_samples:
            break  # before the next is asked for, which may take long
    if not tasks:
        listed = "".join(f"\n  {row}" for row in bad[:_SHOWN])
        raise DataError(f"no usable task in {[str(source) for source in sources]}{listed}")
    return Loaded(tuple(tasks), tuple(bad))


def _refuse_endless(sources: Sequence[str | Path], split: str) -> None:
    for source in map(str, sources):
        if source.startswith(_PREFIX):
            function = GENERATORS.get(source.removeprefix(_PREFIX))
            if getattr(function, "endless", False):
                raise _no_end(f"{source} never ends", split)


def _no_end(what: str, split: str) -> DataError:
    return DataError(
        f"{what}; set how many tasks to take, as in data.{split}_max_samples=10000 (an epoch is "
        "then one pass over these)"
    )


def load_configured(
    data: DataConfig, split: str, seed: int, *, max_samples: int | None = None
) -> Loaded:
    """The tasks of a split as the ``data`` section describes them, bad rows beside them.

    ``max_samples`` is used where the section sets no limit. Raises as :func:`load_tasks`.
    """
    training = split == "train"
    limit = data.train_max_samples if training else data.val_max_samples
    return load_tasks(
        data.train_files if training else data.val_files,
        columns=Columns.configured(data),
        split=split,
        seed=seed if data.seed is None else data.seed,
        options={**data.generator_kwargs, **({} if training else data.val_generator_kwargs)},
        max_samples=max_samples if limit is None else limit,
    )


def _items(
    sources: Sequence[str | Path],
    columns: Columns,
    split: str,
    seed: int,
    options: Mapping[str, Any],
) -> Iterator[tuple[Task | BadRow, str]]:
    names: set[str] = set()
    generators: set[str] = set()
    for source in map(str, sources):
        if source.startswith(_PREFIX):
            name = source.removeprefix(_PREFIX)
            items: Iterable[Task | BadRow] = told(
                generate(name, split, seed, options),
                source,
                f"data.{split}_max_samples limits how many are taken.",
            )
            label = _unique(re.split(r"[:.]", name)[-1], generators)
            if len(generators) > 1:
                items = _labelled(items, label)
        else:
            path = Path(source).expanduser()
            items = _file_tasks(path, columns, _unique(path.name.partition(".")[0], names))
        for item in items:
            yield item, source


def _labelled(items: Iterable[Task | BadRow], label: str) -> Iterator[Task | BadRow]:
    for item in items:
        yield replace(item, id=f"{label}/{item.id}") if isinstance(item, Task) else item


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name-2`` … where two files are called alike."""
    for n in itertools.count(1):
        candidate = name if n == 1 else f"{name}-{n}"
        if candidate not in taken:
            break
    taken.add(candidate)
    return candidate


def generate(name: str, split: str, seed: int, options: Mapping[str, Any]) -> Iterator[Task]:
    """Tasks of a registered generator or dotted path, each checked.

    Raises:
        DataError: it raised, does not take the options, or yields what is no task.
        RegistryError: there is none of this name.
    """
    function = GENERATORS.get(name)
    number = 0
    try:
        for number, task in enumerate(function(split=split, seed=seed, **options), 1):
            problem = _task_problem(task)
            if problem:
                raise DataError(f"generator {name!r}, task {number}: {problem}")
            yield task
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        raise DataError(
            f"generator {name!r} failed after {number} tasks (split={split!r}, seed={seed}, "
            f"{dict(options)}): {type(error).__name__}: {error}"
        ) from error


def _task_problem(task: object) -> str | None:
    if not isinstance(task, Task):
        return f"a Task expected, not {type(task).__name__}"
    try:
        _prompt(task.prompt if isinstance(task.prompt, str) else list(task.prompt), Columns())
    except ValueError as error:
        return str(error)
    return None


def require_source(
    source: str | Path, generators: Registry[Any] = GENERATORS, *, imports: bool = True
) -> None:
    """Raise what :func:`load_tasks` would raise because ``source`` does not exist at all.

    Without ``imports`` a generator of the user's is looked for and not imported.
    """
    if str(source).startswith(_PREFIX):
        name = str(source).removeprefix(_PREFIX)
        (generators.get if imports else generators.look_up)(name)
    else:
        require_file(Path(source).expanduser())


def read_tasks(path: str | Path, columns: Columns | None = None) -> Loaded:
    """Tasks of one file; see :func:`load_tasks`."""
    return load_tasks([path], columns=columns)


def _file_tasks(path: Path, columns: Columns, stem: str) -> Iterator[Task | BadRow]:
    checked = False
    for row in read_rows(path):
        if row.values is not None and not checked:
            _require_columns(path, row.values, columns)
            checked = True
        try:
            yield _task(row, columns, stem)
        except ValueError as error:
            yield BadRow(str(path), row.number, str(error))


def _require_columns(path: Path, first: Mapping[str, Any], columns: Columns) -> None:
    """Fail at once, and helpfully, when the file has other columns than were asked for."""
    for setting, wanted in (("prompt_key", columns.prompt), ("answer_key", columns.answer)):
        if lookup(first, wanted) is MISSING:
            there = list(column_paths(first))
            likely = [p for p in _LIKELY[setting] if p in there]
            hint = f", did you mean {likely[0]!r}?" if likely else nearest(wanted, there)
            raise DataError(
                f"{path} has no column {wanted!r} (data.{setting}){hint}; its columns: "
                f"{', '.join(there)}"
            )


_LIKELY = {
    "prompt_key": ("prompt", "question", "problem", "input", "query", "instruction"),
    "answer_key": ("reward_model.ground_truth", "answer", "target", "output", "solution", "label"),
}


def column_paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all columns of a row, nested ones included."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, str):
            value = _object_in(value)
        if isinstance(value, Mapping):
            yield from column_paths(value, f"{prefix}{name}.")


MISSING = object()
"""What :func:`lookup` finds where there is nothing; ``None`` is a value that files have."""


def lookup(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; a column whose very name has dots wins.

    A nested column may be stored as the JSON text of an object, as tables without nesting do.
    """
    if path in values:
        return values[path]
    head, dot, rest = path.partition(".")
    inner = values.get(head)
    if dot and isinstance(inner, str):
        inner = _object_in(inner)
    return lookup(inner, rest) if dot and isinstance(inner, Mapping) else MISSING


def _object_in(text: str) -> Any:
    """The object that a text is the JSON of, else ``None``."""
    try:
        return json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:
        return None


def _task(row: Row, columns: Columns, stem: str) -> Task:
    """Make a task of a row. Raises ``ValueError`` with the reason if it is none."""
    if row.values is None:
        raise ValueError(row.error)
    source = lookup(row.values, columns.data_source)
    extra = row.values.get("extra_info")
    ability = row.values.get("ability")
    return Task(
        id=_id(row, columns, stem),
        prompt=_prompt(lookup(row.values, columns.prompt), columns),
        answer=_answer(lookup(row.values, columns.answer), columns.answer),
        data_source=source if isinstance(source, str) and source else stem,
        extra={
            **(dict(extra) if isinstance(extra, Mapping) else {}),
            **({"ability": ability} if ability else {}),
        },
        tools=_tools(lookup(row.values, columns.tools)),
        env=_env(lookup(row.values, columns.env)),
    )


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    return () if value is MISSING else read_tools(value)


def _env(value: Any) -> str:
    return "" if value is MISSING or value is None else str(value)


def _id(row: Row, columns: Columns, stem: str) -> str:
    if columns.id is None:
        return f"{stem}:{row.number}"
    assert row.values is not None
    value = lookup(row.values, columns.id)
    if value is MISSING or value is None or value == "":
        raise ValueError(f"no id in column {columns.id!r}")
    return str(value)


def _answer(value: Any, path: str) -> Any:
    if value is MISSING or value is None:
        raise ValueError(f"no answer in column {path!r}")
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"an empty answer in column {path!r}")
    if isinstance(value, float) and value != value:
        raise ValueError(f"the answer in column {path!r} is not a number (NaN)")
    return value


def _prompt(value: Any, columns: Columns) -> tuple[Message, ...] | str:
    if value is MISSING or value is None:
        raise ValueError(f"no prompt in column {columns.prompt!r}")
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty prompt")
        if columns.template is None and (messages := _messages_in(value)) is not None:
            return _messages(messages, columns)
        text = (columns.template or "{prompt}").replace("{prompt}", value)
        if not columns.chat and columns.system is None:
            return text
        value = [{"role": "user", "content": text}]
    return _messages(value, columns)


def _messages_in(text: str) -> list[Any] | None:
    """Messages that a text format (CSV) had to write as JSON."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) and "role" in parsed[0] else None


def _messages(value: Any, columns: Columns) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"the prompt must be text or a list of messages, not {value!r:.60}")
    read = read_messages(value, strict=True)
    if not any(message.content.strip() for message in read):
        raise ValueError("an empty prompt")
    messages = [message.as_message() for message in read]
    if columns.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": columns.system})
    return tuple(messages)


def split_overlong(
    tasks: Iterable[Task], length_of: Callable[[Task], int], limit: int
) -> tuple[list[Task], list[Task]]:
    """Tasks whose rendered prompt has at most ``limit`` tokens, and those that have more."""
    fitting: list[Task] = []
    overlong: list[Task] = []
    for task in tasks:
        (fitting if length_of(task) <= limit else overlong).append(task)
    return fitting, overlong
