"""``agent-r1 data``: fetch, convert and look at training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_r1.cli.base import Command, OrderedGroup, configured, load, say, under_way
from agent_r1.cli.traces import traces

if TYPE_CHECKING:
    from agent_r1.config.schema import Config
    from agent_r1.data.prepare import Prepared
    from agent_r1.data.prepare.qa import QaPrepared


@click.group(
    cls=OrderedGroup,
    examples="""
agent-r1 data list                                        what can be had
agent-r1 data prepare retool --local-dir ./data/retool    fetch, clean, split
agent-r1 data convert my.csv --question q --answer a --local-dir ./data/mine
agent-r1 data show data.train_files=./data/retool/train.parquet
""",
)
def data() -> None:
    """Prepare training data, and show it."""


@data.command(name="list")
def list_() -> None:
    """List the collections that "prepare" knows."""
    from agent_r1.data.prepare.catalogue import SOURCES
    from agent_r1.data.prepare.qa import QA_SOURCES

    for source in (*SOURCES.values(), *QA_SOURCES.values()):
        others = f" (also: {', '.join(source.aliases)})" if source.aliases else ""
        click.echo(f"{source.name:<15} {source.title}{others}")
        splits = ", ".join(source.splits) or "from files"
        click.echo(f"{'':<15} {splits}; {source.licence}; {source.home}")


def writing(command: Command) -> Command:
    """Options of commands that write prepared files."""
    folder = click.Path(path_type=Path)
    for option in (
        click.option("--force", is_flag=True, help="Replace files that are there."),
        click.option("--offline", is_flag=True, help="Use the download cache only."),
        click.option(
            "--against",
            multiple=True,
            metavar="[NAME=]FILE",
            help="Evaluation set whose questions training must not hold; repeatable.",
        ),
        click.option("--seed", default=0, show_default=True, help="Seed of the validation split."),
        click.option("--system", help="System message before each question."),
        click.option(
            "--prompt",
            metavar="STYLE|FILE",
            help="retool, retool_session, search_r1, wiki, plain, bare, or a text file with "
            "{question} in it.  [retool; search_r1 for questions over a corpus]",
        ),
        click.option("--local-dir", required=True, type=folder, help="Folder for the files."),
    ):
        command = option(command)
    return command


@data.command(
    examples="""
agent-r1 data prepare retool --local-dir ./data/retool
agent-r1 data prepare gsm8k --local-dir ./data/gsm8k --val-size 256 --prompt plain
agent-r1 data prepare retool --local-dir ./data/retool --source dapo-math-17k.parquet \\
    --against math500=math500.jsonl
agent-r1 data prepare gsm8k --local-dir ./data/gsm8k \\
    --source train=train.jsonl --source test=test.jsonl
agent-r1 data prepare hotpotqa --local-dir ./data/hotpotqa     questions, and their corpus
"""
)
@click.argument("name")
@click.option(
    "--source",
    "files",
    multiple=True,
    metavar="[SPLIT=]FILE",
    help="Read this file instead of downloading; repeatable.",
)
@click.option("--val-size", default=500, show_default=True, help="Problems held out of training.")
@writing
def prepare(
    name: str,
    files: tuple[str, ...],
    val_size: int,
    local_dir: Path,
    prompt: str | None,
    system: str | None,
    seed: int,
    against: tuple[str, ...],
    offline: bool,
    force: bool,
) -> None:
    """Make clean training files of the published collection NAME.

    Duplicates, contradictions, mangled answers and questions of evaluation sets are left
    out; each such row is named in dropped.jsonl and counted in report.json.
    """
    from agent_r1.data.prepare import Options
    from agent_r1.data.prepare import prepare as run_prepare
    from agent_r1.data.prepare.download import Downloader
    from agent_r1.data.prepare.qa import prepare_qa, qa_source

    qa = qa_source(name)
    style = prompt or ("search_r1" if qa else "retool")
    options = Options(local_dir, style, system, val_size, seed, against, force)
    with _progress() as progress:
        downloader = Downloader(offline=offline, progress=progress)
        if qa is not None:
            _show(prepare_qa(qa, options, files=files, downloader=downloader))
        else:
            _show(run_prepare(name, options, files=files, downloader=downloader))


@data.command(
    examples="""
agent-r1 data convert my.csv --question problem --answer solution --local-dir ./data/mine
agent-r1 data convert a.jsonl b.jsonl --question q --answer meta.answer \\
    --local-dir ./data/mine --val-size 100 --against math500 --against my_test.jsonl
"""
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--question", required=True, metavar="COLUMN", help="Column with the question.")
@click.option("--answer", required=True, metavar="COLUMN", help="Column with the answer.")
@click.option(
    "--answer-from",
    type=click.Choice(["auto", "text", "boxed", "hashes"]),
    default="auto",
    show_default=True,
    help=r"The whole text, its last \boxed{}, what follows ####, or whichever is there.",
)
@click.option("--keep", multiple=True, metavar="COLUMN", help="Pass this column on; repeatable.")
@click.option("--data-source", metavar="NAME", help="Name of the data in metrics.  [file name]")
@click.option("--ability", default="math", show_default=True, help="Value of that column.")
@click.option("--keep-duplicates", is_flag=True, help="Leave repeated rows in.")
@click.option("--val-size", default=0, show_default=True, help="Problems held out of training.")
@writing
def convert(
    files: tuple[Path, ...],
    question: str,
    answer: str,
    answer_from: str,
    keep: tuple[str, ...],
    data_source: str | None,
    ability: str,
    keep_duplicates: bool,
    val_size: int,
    local_dir: Path,
    prompt: str | None,
    system: str | None,
    seed: int,
    against: tuple[str, ...],
    offline: bool,
    force: bool,
) -> None:
    """Make training files of your own JSONL, CSV, TSV, JSON or Parquet FILES.

    Columns may be nested, with dots: --answer meta.answer.
    """
    from agent_r1.data.prepare import Options
    from agent_r1.data.prepare import convert as run_convert
    from agent_r1.data.prepare.download import Downloader
    from agent_r1.data.prepare.reading import READERS

    with _progress() as progress:
        prepared = run_convert(
            files,
            Options(local_dir, prompt or "retool", system, val_size, seed, against, force),
            question=question,
            answer=answer,
            read=READERS[answer_from],
            data_source=data_source,
            ability=ability,
            extra=keep,
            keep_duplicates=keep_duplicates,
            downloader=Downloader(offline=offline, progress=progress),
        )
    _show(prepared)


def _show(prepared: Prepared | QaPrepared) -> None:
    for line in prepared.lines():
        click.echo(line)
    for warning in prepared.warnings():
        say(warning, colour="yellow")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """That data are prepared, and each download."""
    from agent_r1.under_way import Part, rows

    with rows() as shown:
        shown.show(Part("preparing"))

        def advance(name: str, done: int, total: int | None) -> None:
            shown.show(Part(name, done, total or 0, of_bytes=True))
            if done == total:
                shown.hide(name)

        yield advance


def of_a_split(command: Command) -> Command:
    """Add ``--split`` and a configuration."""
    split = click.option(
        "--split",
        type=click.Choice(["train", "val"]),
        default="train",
        show_default=True,
        help="data.train_files or data.val_files.",
    )
    return configured(split(command))


@data.command(
    examples="""
agent-r1 data show data.train_files=train.parquet
agent-r1 data show --config run.yaml --split val -n 10
"""
)
@of_a_split
@click.option("--count", "-n", default=3, show_default=True, help="Tasks to show.")
def show(file: Path | None, overrides: Sequence[str], split: str, count: int) -> None:
    """Show the tasks that a configuration reads, and the rows that are not valid.

    With envs, those of each environment.
    """
    config = _with_tasks(file, overrides, split)
    from agent_r1.data.show import describe_tasks

    for line in describe_tasks(config, split, count):
        click.echo(line)


@data.command(
    examples="""
agent-r1 data check data.train_files=train.parquet
agent-r1 data check data.train_files=train.parquet reward.name=retool
"""
)
@of_a_split
def check(file: Path | None, overrides: Sequence[str], split: str) -> None:
    r"""Grade every reference answer, written as \boxed{}, with the configured reward.

    A task whose own answer is not graded as right can never be solved. With envs, each
    environment's answers are graded by its own reward.
    """
    config = _with_tasks(file, overrides, split)
    from agent_r1.data.check import check_answers

    with under_way("grading"):
        lines = list(check_answers(config, split))
    for line in lines:
        click.echo(line)


def _with_tasks(file: Path | None, overrides: Sequence[str], split: str) -> Config:
    """The configuration, which says where tasks come from: itself, or an entry of ``envs``."""
    from agent_r1.config import Config

    files = {f"data__{split}_files": "tasks.parquet (or generator:NAME)"}
    return load(Config, file, overrides, needs=lambda config: {} if config.envs else files)


data.add_command(traces)
