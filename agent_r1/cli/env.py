"""``agent-r1 env``: what an agent can act in: listed, explained, checked, played."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from agent_r1.cli.base import OrderedGroup, configured, load
from agent_r1.errors import AgentR1Error, ConfigError

if TYPE_CHECKING:
    from agent_r1.config.schema import Config
    from agent_r1.types import Task


@click.group(
    cls=OrderedGroup,
    examples="""
agent-r1 env list
agent-r1 env show retool
agent-r1 env check my_env.py:ShopEnv --text '<price>apple</price>'
agent-r1 env play retool 'tool.tools=[python]' --prompt 'What is 2**64?' --save trace.jsonl
""",
)
def env() -> None:
    """List, describe, check and play environments."""


@env.command("list")
def list_envs() -> None:
    """List the named environments: this project's and those of installed packages."""
    from agent_r1.tool.registry import ENVS

    names = ENVS.names()
    width = max(map(len, names))
    for name in names:
        try:
            told = _first_line(ENVS.get(name))
        except AgentR1Error as error:
            told = f"cannot be loaded: {error}"
        click.echo(f"{name:<{width}}  {told}")
    click.echo("\nA path works as well: tool.env=package.module:Name or tool.env=file.py:Name")


@env.command()
@click.argument("name")
def show(name: str) -> None:
    """Describe an environment: what it is, its options, and what ends a turn."""
    from agent_r1.tool.registry import ENVS

    found = ENVS.get(name)
    click.echo(f"{name}: {found.__module__}.{found.__qualname__}\n")
    click.echo(inspect.getdoc(found) or "It has no description.")
    stops = getattr(found, "stop_strings", ())
    listed = ", ".join(map(repr, stops)) if isinstance(stops, tuple) else ""
    click.echo(f"\nA turn ends at: {listed or 'the end of the answer'}")
    options = [
        parameter
        for parameter in inspect.signature(found).parameters.values()
        if parameter.name not in ("tools", "shared")
    ]
    if options:
        click.echo("\nOptions (tool.env_kwargs.NAME=…):")
    for parameter in options:
        click.echo(f"  {parameter}")
    if "tools" in inspect.signature(found).parameters:
        click.echo("\nIt works with tools: tool.tools='[NAME]', tool.mcp")


@env.command()
@click.argument("name")
@configured
@click.option(
    "--text", "texts", multiple=True, help="Text of a turn; repeat it for the turns of an episode."
)
@click.option(
    "--tasks", default=3, show_default=True, help="Number of tasks of data.train_files to use."
)
@click.option("--timeout", default=30.0, show_default=True, help="Seconds for one step.")
def check(
    name: str,
    file: Path | None,
    overrides: Sequence[str],
    texts: Sequence[str],
    tasks: int,
    timeout: float,
) -> None:
    """Test an environment with difficult texts, threads, cancellation and repetition.

    NAME is a registered environment, a path, or an entry of envs in the configuration. Tools
    are really called. Exit code 1 if it breaks its contract.
    """
    chosen = _environment(name, file, overrides)
    from agent_r1.testing.check_env import check_tool_env
    from agent_r1.testing.check_environment import check_environment
    from agent_r1.tool.base import BaseToolEnv
    from agent_r1.tool.protocol import environments_of
    from agent_r1.trainer.environments import open_environment

    given = chosen.tasks(tasks)
    with open_environment(chosen.config.tool, chosen.config.sandbox) as opened:
        if isinstance(opened, BaseToolEnv):
            first = given[0] if given else None
            check_tool_env(opened, texts, task=first, timeout_s=timeout)
        report = check_environment(environments_of(opened), given, texts, timeout_s=timeout)
    click.echo(f"{name} keeps its contract: {report.steps} steps, {report.calls} tool calls")
    for warning in report.warnings:
        click.echo(f"note: {warning}")


@env.command()
@click.argument("name")
@configured
@click.option("--prompt", default="", help="The task, where data.train_files gives none.")
@click.option("--task", "number", default=0, show_default=True, help="Which of the tasks.")
@click.option("--save", type=click.Path(path_type=Path), help="Add the episode as a trace.")
def play(
    name: str,
    file: Path | None,
    overrides: Sequence[str],
    prompt: str,
    number: int,
    save: Path | None,
) -> None:
    """Take the model's place: read what it would read, write its turns, get its reward.

    NAME is a registered environment, a path, or an entry of envs in the configuration, which is
    played with its own tasks, tools, limits and reward.

    With actor_rollout_ref.model.path everything is shown as that model's template writes it,
    and counted in its tokens; without it in bytes. A line that ends in a backslash goes on in
    the next one.
    """
    chosen = _environment(name, file, overrides)
    from agent_r1.data.traces import append_trace
    from agent_r1.trainer.environments import open_environment
    from agent_r1.trainer.play import as_trace
    from agent_r1.trainer.play import play as play_episode
    from agent_r1.types import Task

    tasks = chosen.tasks(number + 1)
    if tasks and number >= len(tasks):
        raise ConfigError(f"there are {len(tasks)} training tasks; --task counts from 0")
    task = tasks[number] if tasks else Task("play", prompt, env=chosen.name)
    with open_environment(chosen.config.tool, chosen.config.sandbox) as opened:
        trajectory = play_episode(chosen.config, opened, task)
    if save is not None:
        append_trace(save, as_trace(trajectory))
        click.echo(f"trace added to {save}")


def _environment(name: str, file: Path | None, overrides: Sequence[str]) -> _Chosen:
    """The entry of ``envs`` that is called so, else the registered environment."""
    from agent_r1.config import Config
    from agent_r1.config.environments import environment_named
    from agent_r1.tool.registry import ENVS

    config = load(Config, file, [*overrides, f"tool.env={name}"])
    if name in config.envs:
        config = load(Config, file, overrides)
        return _Chosen(environment_named(config, name).config, name, config)
    try:
        ENVS.get(name)
    except AgentR1Error as error:
        if not config.envs:
            raise
        raise ConfigError(
            f"{name} is no entry of envs, which has {', '.join(config.envs)}, and: {error}"
        ) from error
    config = config.model_copy(update={"envs": {}})
    return _Chosen(config, "", config)


class _Chosen(NamedTuple):
    """An environment: its configuration, its name in ``run``, and the configuration of the run."""

    config: Config
    name: str
    run: Config

    def tasks(self, count: int) -> Sequence[Task]:
        """The first ``count`` of its training tasks; none where none are configured."""
        from agent_r1.config.environments import environment_configs
        from agent_r1.data.split import look

        entries = [each.config for each in environment_configs(self.run)]
        if not any(each.data.train_files for each in (self.run, *entries)):
            return ()
        found, _ = look(self.run, "train", at_most=count)
        return found.get(self.name, ())[:count]


def _first_line(found: type) -> str:
    return (inspect.getdoc(found) or "").split("\n", 1)[0]
