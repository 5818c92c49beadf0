"""What all commands share: help with examples, ``--debug``, configurations, notes."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from agent_r1.errors import ConfigError

if TYPE_CHECKING:
    from agent_r1.config.section import Section

Command = TypeVar("Command", bound=Callable[..., Any])
S = TypeVar("S", bound="Section")


class ExampleCommand(click.Command):
    """A command that shows examples and knows ``--debug``."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples = examples
        text = "Show the traceback of an error."
        self.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help=text))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, "Examples", self._examples)


class OrderedGroup(click.Group):
    """Lists its commands in the order of this file, which is that of a project's life."""

    command_class = ExampleCommand
    group_class = type

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, "First steps", self._examples)


def _write_examples(formatter: click.HelpFormatter, title: str, examples: str) -> None:
    if examples:
        with formatter.section(title):
            formatter.write("".join(f"  {line}\n" for line in examples.strip().splitlines()))


def configured(command: Command) -> Command:
    """Add ``--config FILE`` and overrides; the command receives ``file`` and ``overrides``."""
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    file = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        help="YAML file that states what differs from the defaults.",
    )
    return file(overrides(command))


def in_environment(command: Command) -> Command:
    """Add ``--env NAME``; the command receives ``env``, None where it was not given."""
    option = click.option(
        "--env", metavar="NAME", help="Which entry of envs, where the run has several environments."
    )
    return option(command)


def from_run(command: Command) -> Command:
    """Add ``--run FOLDER`` and ``--checkpoint``: a finished or running run to take things from."""
    run = click.option(
        "--run",
        type=click.Path(path_type=Path),
        help="Run folder whose configuration and newest checkpoint to use.",
    )
    checkpoint = click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="Checkpoint or model folder to use instead of the newest.",
    )
    return run(checkpoint(command))


def from_server(command: Command) -> Command:
    """Add ``--server`` and ``--model``; the command receives them as overrides, ``server``."""

    @functools.wraps(command)
    def with_overrides(url: str | None, name: str | None, **arguments: Any) -> Any:
        if name and not url:
            raise ConfigError("--model is the name of a model at --server URL; give both")
        key = "actor_rollout_ref.rollout"
        settings = {f"{key}.name": "openai", f"{key}.server.url": url} if url else {}
        settings |= {f"{key}.server.model": name} if name else {}
        server = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        return command(server=server, **arguments)

    url = click.option("--server", "url", metavar="URL", help="Ask an OpenAI-compatible server.")
    name = click.option(
        "--model", "name", metavar="NAME", help="Name of the model, if the server has several."
    )
    wired: Any = url(name(with_overrides))
    return cast(Command, wired)


def load(
    root: type[S],
    file: Path | None,
    overrides: Sequence[str],
    *,
    base: Path | None = None,
    needs: Callable[[S], Mapping[str, str]] | None = None,
    look_up: Callable[[S], Sequence[str]] | None = None,
    alone: bool = False,
) -> S:
    """Read a configuration, with its warnings as notes on standard error.

    ``needs`` and ``look_up`` as in :func:`agent_r1.config.load_config`. ``alone``: what the second
    finds is an error also where nothing else is wrong, for a command that does not look names and
    files up together later.
    """
    from agent_r1.config import Config, load_config, load_section
    from agent_r1.config.reading import raise_all

    if base is not None and file is not None:
        raise ConfigError("--run and --config exclude each other: a run has its configuration")
    asked: dict[str, Any] = {"needs": needs, "look_up": look_up}
    asked = {name: function for name, function in asked.items() if function is not None}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        source = base or file
        loaded: Any = (
            load_config(source, overrides, **asked)
            if root is Config
            else load_section(root, source, overrides, **asked)
        )
    for note in notes:
        say(f"note: {note.message}", colour="yellow")
    config: S = loaded
    if alone and look_up is not None:
        raise_all(look_up(config))
    return config


def under_way(label: str, *, shown: bool = True) -> AbstractContextManager[Callable[[int], None]]:
    """As :func:`agent_r1.under_way.under_way`, imported when something takes long."""
    from agent_r1.under_way import under_way as show

    return show(label, shown=shown)


def say(text: str, *, colour: str) -> None:
    click.secho(text, fg=colour, err=True)


def newest_checkpoint(run: Path) -> Path:
    """The folder of the newest checkpoint of ``run``; :class:`ConfigError` if it has none."""
    return _checkpoints(run)[-1]


def _checkpoints(run: Path) -> list[Path]:
    found = sorted(run.glob("checkpoints/step-*"), key=lambda p: (len(p.name), p.name))
    if not found:
        raise ConfigError(f"{run} has no checkpoint yet; give --checkpoint, or train further")
    return found


def policy_folder(run: Path | None, checkpoint: Path | None) -> Path | None:
    """The model folder of ``checkpoint``, else of the newest checkpoint of ``run`` with one."""
    if checkpoint is None and run is not None:
        found = _checkpoints(run)
        complete = [path for path in found if (path / "policy").is_dir()]
        checkpoint = (complete or found)[-1]
    if checkpoint is None:
        return None
    policy = checkpoint / "policy" if (checkpoint / "policy").is_dir() else checkpoint
    if not (policy / "config.json").is_file():
        if (checkpoint / "shards").is_dir():
            raise ConfigError(
                f"{checkpoint} holds its policy as shards only; make a model folder of it with "
                f"agent-r1 export --checkpoint {checkpoint} FOLDER"
            )
        raise ConfigError(f"{policy} is no model folder: it has no config.json")
    return policy
