"""``agent-r1 view``: runs and trajectories in a browser, or as one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agent_r1.cli.base import ExampleCommand, policy_folder, say, under_way
from agent_r1.errors import AgentR1Error, ConfigError
from agent_r1.types import Outcome

_DEFAULT = Path("runs")


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 view                                  every run below runs/
agent-r1 view runs/my/run runs/my/other --no-browser --port 8700
agent-r1 view eval/ --tokenizer ./model
agent-r1 view runs/my/run --export wrong.html --step 40 --wrong
""",
)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port.  [default: a free one]"
)
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True),
    help="Model folder, to show single tokens.  [default: the run's]",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write trajectories of one run as a page that needs no server.",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Export at most this many: of the first and last step, the best and worst groups; with a "
    "choice below, the last ones that fit.",
)
@click.option("--step", type=int, help="Export this step only.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Export this split only.")
@click.option(
    "--outcome", type=click.Choice([o.value for o in Outcome]), help="Export this outcome only."
)
@click.option("--wrong", is_flag=True, help="Export those with a reward of 0 or less.")
def view(
    runs: tuple[Path, ...],
    port: int,
    no_browser: bool,
    tokenizer: Path | None,
    export: Path | None,
    most: int,
    **chosen: Any,
) -> None:
    """Show runs in a browser, while they train and afterwards.

    RUNS are folders of runs, of evaluations, or folders above them. The address is on this
    machine's loopback interface and holds a token; no data leaves the machine.
    """
    if export is not None:
        _export(runs, export, tokenizer, most, chosen)
        return
    if any(chosen.values()):
        given = ", ".join(f"--{name}" for name, value in chosen.items() if value)
        raise ConfigError(f"{given} choose what --export FILE writes; give that as well")
    with under_way("starting"):
        from agent_r1.viewer.server import serve

    if not runs and not _DEFAULT.is_dir():
        raise ConfigError("there is no folder runs/ here; say which run to look at")
    serve(
        runs or (_DEFAULT,),
        port=port,
        browser=not no_browser,
        tokenizer=tokenizer,
        ready=lambda address: click.echo(f"{address}\n(Ctrl-C to stop)"),
    )


def _export(
    runs: tuple[Path, ...], target: Path, tokenizer: Path | None, most: int, chosen: dict[str, Any]
) -> None:
    with under_way("starting"):
        from agent_r1.viewer import Choice, write_page

    if len(runs) != 1:
        raise ConfigError("--export writes the page of one run; give its folder")
    (source,) = runs
    folder = source if source.is_dir() else source.parent
    with under_way(f"writing {target}"):
        count = write_page(source, target, Choice(most, **chosen), _tokenizer(folder, tokenizer))
    click.echo(f"{count} trajectories → {target}")


@click.command(
    "export-trajectories",
    cls=ExampleCommand,
    examples="""
agent-r1 export-trajectories runs/my/run > trajectories.jsonl
agent-r1 export-trajectories runs/my/run --split val | jq .outcome
agent-r1 export-trajectories runs/my/run --out trajectories.jsonl
""",
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="File.  [default: standard output]")
@click.option("--step", type=int, help="Of this step only.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Of this split only.")
def export_trajectories(
    source: Path, out: Path | None, step: int | None, split: str | None
) -> None:
    """Write the trajectories of a run or an evaluation as lines of JSON.

    Each line is a whole trajectory, as agent_r1/monitor/records.py describes it.
    """
    with under_way("starting"):
        from agent_r1.monitor.jsonl import encode
        from agent_r1.monitor.records import read_records

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; name another file or remove it")
    with (
        under_way("trajectories", shown=out is not None or not sys.stdout.isatty()) as progress,
        click.open_file(str(out or "-"), "wb") as file,
    ):
        for number, record in enumerate(read_records(source), 1):
            progress(number)
            if step in (None, record["step"]) and split in (None, record["split"]):
                file.write(encode(record) + b"\n")


def _tokenizer(folder: Path, given: Path | None) -> Any:
    """That of the newest checkpoint, or of the model in the settings; None if it is gone."""
    from agent_r1.models.load import load_tokenizer

    if given is not None:
        return load_tokenizer(given)
    try:
        return load_tokenizer(_model_of(folder))
    except AgentR1Error as error:
        say(f"tokens are not told apart ({error}); give --tokenizer", colour="yellow")
        return None


def _model_of(folder: Path) -> Path | str:
    from agent_r1.config import Config
    from agent_r1.config.load import load_section

    try:
        policy = policy_folder(folder, None)
        assert policy is not None
        return policy
    except ConfigError:  # an evaluation, or a run before its first checkpoint
        settings = load_section(Config, folder / "config.yaml", environ={})
        return settings.actor_rollout_ref.model.path
