"""``agent-r1 data traces``: what a cold start learns from."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent_r1.cli.base import Command, OrderedGroup, configured, in_environment, load, under_way
from agent_r1.errors import ConfigError

if TYPE_CHECKING:
    from agent_r1.config.schema import Config


@click.group(
    cls=OrderedGroup,
    examples="""
agent-r1 data traces gsm8k --out traces.jsonl
agent-r1 data traces harvest runs/samples/trajectories.jsonl --out own.jsonl
agent-r1 data traces inspect traces.jsonl --model ./model
agent-r1 data traces rerun retool_sft.parquet --out traces.jsonl
agent-r1 sft model.path=./model data.train_files=traces.jsonl
""",
)
def traces() -> None:
    """Make traces for a cold start (agent-r1 sft)."""


def from_annotations(command: Command) -> Command:
    """Options of commands that play annotated solutions in the environment."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="Read this many rows only."),
        click.option("--system", help="System message before each question."),
        click.option(
            "--prompt",
            default="retool",
            show_default=True,
            metavar="STYLE|FILE",
            help="As in 'data prepare': a cold start should see the prompt of later training.",
        ),
        click.option(
            "--out", required=True, type=click.Path(path_type=Path), help="JSONL file to write."
        ),
        click.option(
            "--source",
            "files",
            multiple=True,
            type=click.Path(path_type=Path),
            help="File to read; repeatable.",
        ),
    ):
        command = option(command)
    return in_environment(configured(command))


@traces.command(
    examples="""
agent-r1 data traces gsm8k --out traces.jsonl
agent-r1 data traces gsm8k --source train.jsonl --out traces.jsonl --prompt my_prompt.txt
"""
)
@from_annotations
def gsm8k(files: tuple[Path, ...], **chosen: Any) -> None:
    """GSM8K's calculator annotations as programs (downloaded unless --source is given)."""
    if not files:
        from agent_r1.data.prepare.catalogue import SOURCES
        from agent_r1.data.prepare.download import Downloader

        files = (Downloader().fetch(SOURCES["gsm8k"].train)[0],)
    _play("gsm8k", files, **chosen)


@traces.command(
    examples="""
agent-r1 data traces mathcoder --source correct.jsonl --out traces.jsonl
"""
)
@from_annotations
def mathcoder(files: tuple[Path, ...], **chosen: Any) -> None:
    """Solutions in MathCoder's format of text, code and execution blocks."""
    if not files:
        raise ConfigError("give at least one --source FILE.jsonl")
    _play("mathcoder", files, **chosen)


def _play(
    name: str,
    files: Sequence[Path],
    out: Path,
    prompt: str,
    system: str | None,
    limit: int | None,
    env: str | None,
    file: Path | None,
    overrides: Sequence[str],
) -> None:
    with under_way("starting"):
        from agent_r1.data.cold_start.make import make_traces, rejected_file
        from agent_r1.trainer.environments import open_tool_environment

    config = _environment(env, file, overrides)
    with open_tool_environment(config.tool, config.sandbox) as tools, _counter("played") as advance:
        played = asyncio.run(
            make_traces(
                name,
                files,
                tools,
                out,
                prompt=prompt,
                system=system,
                limit=limit,
                on_finished=advance,
            )
        )
    click.echo(f"wrote {len(played.traces):,} traces to {out}")
    click.echo(f"  {played.calls:,} programs ran; {played.failed_calls:,} errors were put right")
    _show_counts("no trace", played.reasons())
    if played.rejected:
        click.echo(f"every row without a trace: {rejected_file(out)}")


@traces.command(
    examples="""
agent-r1 eval --checkpoint ./model data.val_files=train.parquet --out samples \\
    actor_rollout_ref.rollout.val_kwargs.n=8 actor_rollout_ref.rollout.val_kwargs.temperature=1
agent-r1 data traces harvest samples/trajectories.jsonl --out own.jsonl --per-task 2
agent-r1 sft model.path=./model data.train_files=own.jsonl
"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSONL file to write.")
@click.option(
    "--per-task",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Distinct traces of each task at most.",
)
@click.option("--without-tool", is_flag=True, help="Keep those that called no tool, too.")
@click.option("--no-failed-calls", is_flag=True, help="Leave out those in which a call failed.")
@in_environment
def harvest(
    files: tuple[Path, ...],
    out: Path,
    per_task: int,
    without_tool: bool,
    no_failed_calls: bool,
    env: str | None,
) -> None:
    """Rejection sampling: the right ones of a policy's own trajectories.

    FILES are trajectories.jsonl of evaluations, or folders of evaluations and training runs.
    """
    from itertools import chain

    from agent_r1.errors import DataError

    with under_way("starting"):
        from agent_r1.data.traces import write_traces
        from agent_r1.monitor.records import load_trajectories
        from agent_r1.trainer.harvest import Choice
        from agent_r1.trainer.harvest import harvest as run_harvest

    if out.exists():
        raise DataError(f"{out} exists already; name another file or remove it")
    choice = Choice(per_task, not without_tool, not no_failed_calls, env)
    with under_way("reading trajectories"):
        found = run_harvest(chain.from_iterable(load_trajectories(file) for file in files), choice)
    if not found.traces:
        raise DataError(f"no trajectory is worth learning from: {found.counts}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_traces(out, found.traces)
    click.echo(f"wrote {len(found.traces):,} traces of {found.tasks:,} tasks to {out}")
    _show_counts("left out", {k: v for k, v in found.counts.items() if k != "kept"})


@traces.command(
    examples="""
agent-r1 data traces inspect traces.jsonl --model ./model
agent-r1 data traces inspect retool_sft.parquet --model Qwen/Qwen2.5-7B-Instruct --limit 1
"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Model folder or name; its tokenizer is used.")
@click.option("--limit", default=3, show_default=True, type=click.IntRange(min=1), help="Traces.")
def inspect(file: Path, model: str, limit: int) -> None:
    """Show which tokens of some traces will be learned: green, or between [[ and ]]."""
    from agent_r1.config.policy import ModelConfig
    from agent_r1.data.traces import read_traces

    with under_way("reading the tokenizer"):
        from agent_r1.rollout.codec import open_codec
        from agent_r1.trainer.sft_inspect import stretches

        codec = open_codec(ModelConfig(path=model))
    coloured = sys.stdout.isatty()
    for number, trace in enumerate(itertools.islice(read_traces(file), limit), 1):
        shown = stretches(trace, codec)
        learned = sum(part.tokens for part in shown if part.learned)
        total = sum(part.tokens for part in shown)
        title = f"trace {number} ({trace.source}): {learned} of {total} tokens are learned"
        click.secho(title, bold=True)
        for part in shown:
            if coloured:
                fg = "green" if part.learned else "bright_black"
                click.secho(part.text, fg=fg, nl=False)
            else:
                click.echo(f"[[{part.text}]]" if part.learned else part.text, nl=False)
        click.echo("\n")


@traces.command(
    examples="""
agent-r1 data traces rerun retool_sft.parquet --out traces.jsonl
agent-r1 data traces rerun traces.jsonl --out fresh.jsonl --stale drop tool.env=retool
"""
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSONL file to write.")
@click.option(
    "--stale",
    type=click.Choice(["correct", "drop"]),
    default="correct",
    show_default=True,
    help="What to do with a trace whose outputs have changed.",
)
@in_environment
@configured
def rerun(
    source: Path,
    out: Path,
    stale: Any,
    env: str | None,
    file: Path | None,
    overrides: Sequence[str],
) -> None:
    """Execute the calls of traces again; correct or drop those whose outputs changed."""
    from agent_r1.data.traces import read_traces, write_traces

    with under_way("starting"):
        from agent_r1.trainer.environments import open_tool_environment
        from agent_r1.trainer.sft_inspect import run_again

    config = _environment(env, file, overrides)
    if out.exists():
        raise ConfigError(f"{out} exists already; name another file or remove it")
    with (
        open_tool_environment(config.tool, config.sandbox) as tools,
        _counter("executed") as advance,
    ):
        result = run_again(read_traces(source), tools, stale=stale, on_finished=advance)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_traces(out, result.traces)
    click.echo(f"wrote {len(result.traces):,} of {result.counts.total():,} traces to {out}")
    _show_counts("traces", result.counts)


def _environment(name: str | None, file: Path | None, overrides: Sequence[str]) -> Config:
    """The configuration, or that of the chosen entry of ``envs``."""
    from agent_r1.config import Config
    from agent_r1.config.environments import environment_named

    return environment_named(load(Config, file, overrides), name).config


def _show_counts(title: str, counts: Mapping[str, int]) -> None:
    for reason, count in counts.items():
        click.echo(f"  {title}: {count:,} {reason}")


@contextmanager
def _counter(what: str) -> Iterator[Callable[[], None]]:
    """A running count."""
    counted = itertools.count(1)
    with under_way(what) as progress:
        yield lambda: progress(next(counted))
