"""``agent-r1 view``: trajectories as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent_r1.cli.base import ExampleCommand, newest_checkpoint, say
from agent_r1.errors import AgentR1Error, ConfigError
from agent_r1.types import Outcome


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 view runs/my/run
agent-r1 view runs/my/run --step 40 --wrong --out wrong.html
agent-r1 view eval/ --tokenizer ./model
""",
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), help="File.  [default: in the folder]")
@click.option(
    "--most", type=click.IntRange(min=1), default=200, show_default=True, help="Only the last ones."
)
@click.option("--step", type=int, help="Of this step only.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Of this split only.")
@click.option(
    "--outcome", type=click.Choice([o.value for o in Outcome]), help="Of this outcome only."
)
@click.option("--wrong", is_flag=True, help="Only those with a reward of 0 or less.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True),
    help="Model folder, to show single tokens.  [default: the run's]",
)
def view(source: Path, out: Path | None, most: int, tokenizer: Path | None, **chosen: Any) -> None:
    """Show the last trajectories of a run or an evaluation on one page.

    The page is a file without any network: what the model wrote, token by token with its
    probability, what the environment answered, outcome and reward.
    """
    from agent_r1.viewer import PAGE_FILE, Choice, write_page

    folder = source if source.is_dir() else source.parent
    target = out or folder / PAGE_FILE
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
    from agent_r1.monitor.jsonl import encode
    from agent_r1.monitor.records import read_records

    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; name another file or remove it")
    with click.open_file(str(out or "-"), "wb") as file:
        for record in read_records(source):
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
        return newest_checkpoint(folder) / "policy"
    except ConfigError:  # an evaluation, or a run before its first checkpoint
        settings = load_section(Config, folder / "config.yaml", environ={})
        return settings.actor_rollout_ref.model.path
