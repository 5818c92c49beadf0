"""Read, clean, split, write, report: the same for every collection and for a user's table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_r1.data.prepare.catalogue import EVALUATION, SOURCES, Source, source_named
from agent_r1.data.prepare.clean import Cleaned, clean
from agent_r1.data.prepare.download import Downloader, Unavailable
from agent_r1.data.prepare.problems import Dropped, Problem, Reason
from agent_r1.data.prepare.prompts import prompt_text
from agent_r1.data.prepare.reading import (
    AnswerReader,
    Layout,
    by_its_marks,
    read_problems,
)
from agent_r1.data.prepare.write import (
    as_rows,
    divide,
    write_dropped,
    write_parquet,
    write_report,
)
from agent_r1.errors import DataError


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for, besides the collection."""

    out: Path
    """Folder for the files."""
    prompt: str = "retool"
    """A prompt style, or a file with ``{question}`` in it."""
    system: str | None = None
    """Text of a system message before each question."""
    val_size: int = 0
    """Problems to hold out of the training split."""
    seed: int = 0
    """Of the choice of these."""
    against: tuple[str, ...] = ()
    """Evaluation sets that training rows must not overlap: ``[NAME=]FILE``, or a known name."""
    force: bool = False
    """Replace files that are there."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written, and the account of every row."""

    out: Path
    title: str
    written: Mapping[str, int]
    """Rows by split."""
    cleaned: Mapping[str, Cleaned]
    """By split of the collection: ``train``, ``test``."""
    origins: tuple[str, ...]
    """Files and addresses that were read."""
    not_checked: Mapping[str, str]
    """Evaluation sets that could not be had, and why."""
    not_prepared: Mapping[str, str] = field(default_factory=dict)
    """Splits that were left out, and why."""

    def report(self) -> dict[str, Any]:
        """As in ``report.json``."""
        return {
            "collection": self.title,
            "read_from": list(self.origins),
            "splits": {split: _account(cleaned) for split, cleaned in self.cleaned.items()},
            "overlap_not_checked": dict(self.not_checked),
            "not_prepared": dict(self.not_prepared),
            "written": dict(self.written),
        }

    def lines(self) -> Iterator[str]:
        """The same in words."""
        yield self.title
        for origin in self.origins:
            yield f"  from {origin}"
        for split, cleaned in self.cleaned.items():
            yield f"{split}: {cleaned.rows:,} rows, {cleaned.questions:,} different questions"
            yield from _in_words(cleaned)
        for split, reason in self.not_prepared.items():
            yield f"{split}: not prepared; {reason}"
        for split, count in self.written.items():
            yield f"wrote {count:,} rows to {self.out / split}.parquet"
        yield f"every row that was left out: {self.out / 'dropped.jsonl'}"

    def warnings(self) -> Iterator[str]:
        """What a reader of the result has to know."""
        for name, reason in self.not_checked.items():
            yield (
                f"NOT checked for overlap with {name}: {reason}. "
                f"To check it, give --against {name}=FILE"
            )


def prepare(
    name: str,
    options: Options,
    *,
    files: Sequence[str] = (),
    downloader: Downloader | None = None,
) -> Prepared:
    """Make training and test files of a known collection.

    ``files`` (``[SPLIT=]FILE``) are read instead of what is published. Training rows are
    cleaned and checked against every evaluation set that is given or can be had; test rows
    are taken as they are published, but for unreadable ones.

    Raises:
        DataError: a file cannot be had or read, or is there already.
    """
    source = source_named(name)
    downloader = downloader or Downloader()
    prompt = prompt_text(options.prompt)
    refuse_overwriting(options)
    places, origins = locate(source, files, downloader)
    evaluation: dict[str, list[str]] = {}
    not_checked: dict[str, str] = {}
    if "train" in places:
        own = {source.name: places["test"]} if "test" in places else {}
        evaluation, not_checked = _evaluation(options.against, EVALUATION, own, downloader)
    cleaned = {split: _clean(source, split, paths, evaluation) for split, paths in places.items()}
    missing = {
        split: f"give --source {split}=FILE for it"
        for split in source.splits
        if split not in places
    }
    return _write(source, options, prompt, cleaned, tuple(origins), not_checked, missing)


def convert(
    files: Sequence[Path],
    options: Options,
    *,
    question: str,
    answer: str,
    read: AnswerReader = by_its_marks,
    data_source: str | None = None,
    ability: str = "math",
    extra: tuple[str, ...] = (),
    keep_duplicates: bool = False,
    downloader: Downloader | None = None,
) -> Prepared:
    """Make training files of a user's own tables; ``question`` and ``answer`` are columns.

    Raises:
        DataError: a file cannot be read or lacks a column, or the output is there already.
    """
    source = Source(
        name=data_source or files[0].name.partition(".")[0],
        title=", ".join(map(str, files)),
        home="",
        licence="",
        layouts=(Layout(question, answer, read, extra),),
    )
    prompt = prompt_text(options.prompt)
    refuse_overwriting(options)
    downloader = downloader or Downloader()
    evaluation, not_checked = _evaluation(options.against, (), {}, downloader)
    cleaned = _clean(source, "train", files, evaluation, keep_duplicates=keep_duplicates)
    return _write(source, options, prompt, {"train": cleaned}, (), not_checked, {}, ability=ability)


# --- where rows come from ----------------------------------------------------------------


def refuse_overwriting(options: Options) -> None:
    """Raise :class:`DataError` if the output is there and shall not be replaced."""
    there = [f"{split}.parquet" for split in ("train", "val", "test")]
    found = [name for name in there if (options.out / name).exists()]
    if found and not options.force:
        raise DataError(
            f"{options.out} has {', '.join(found)} already; name another folder, or replace "
            "them with --force"
        )


def locate(
    source: Source, files: Sequence[str], downloader: Downloader, splits: Sequence[str] = ()
) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split, and what to call them.

    ``splits`` are those that there may be, where the collection itself publishes none.
    """
    if files:
        known = source.splits or tuple(splits)
        places: dict[str, list[Path]] = {}
        for given in files:
            split, path = _split_of(source, given, known)
            places.setdefault(split, []).append(path)
        ordered = {split: places[split] for split in known if split in places}
        return ordered, [str(path) for paths in ordered.values() for path in paths]
    fetched: dict[str, list[Path]] = {}
    origins: list[str] = []
    for split in source.splits:
        try:
            path, address = downloader.fetch(source.split(split))
        except Unavailable as error:
            raise DataError(
                f"the {split} split of {source.title} cannot be downloaded: {error}.\n"
                f"Without a network, get the file from {source.home} elsewhere and name it: "
                f"--source {split}=FILE"
            ) from error
        fetched[split] = [path]
        origins.append(address.url)
    return fetched, origins


def _split_of(source: Source, given: str, known: Sequence[str]) -> tuple[str, Path]:
    split, mark, path = given.partition("=")
    if not mark:
        return known[0], _existing(given)
    if split not in known:
        raise DataError(f"{source.name} has no split {split!r}; it has {', '.join(known)}")
    return split, _existing(path)


def _existing(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise DataError(f"there is no file {found}")
    return found


def _evaluation(
    against: Sequence[str],
    wanted: Sequence[str],
    own: Mapping[str, Sequence[Path]],
    downloader: Downloader,
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Questions of the evaluation sets by name; and the sets that could not be had."""
    places: dict[str, list[Path]] = {name: list(paths) for name, paths in own.items()}
    for given in against:
        name, path = _evaluation_file(given)
        places.setdefault(name, []).extend([path] if path else [])
    questions: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys([*wanted, *places]):
        try:
            paths = places.get(name) or [downloader.fetch(SOURCES[name].test)[0]]
        except Unavailable as error:
            missing[name] = str(error)
            continue
        questions[name] = [q for path in paths for q in _questions(name, path)]
    return questions, missing


def _evaluation_file(given: str) -> tuple[str, Path | None]:
    """Name and file of ``NAME=FILE``, ``FILE`` (named after itself) or a known ``NAME``."""
    name, mark, path = given.partition("=")
    if mark:
        return (_known(name) or name), _existing(path)
    if (known := _known(given)) is not None and not Path(given).exists():
        return known, None
    stem = Path(given).name.partition(".")[0]
    return (_known(stem) or stem), _existing(given)


def _known(name: str) -> str | None:
    try:
        source = source_named(name)
    except DataError:
        return None
    return source.name if source.test else None


_QUESTION_COLUMNS = ("problem", "question", "input", "Problem", "prompt", "query")


def _questions(name: str, path: Path) -> list[str]:
    """The questions of an evaluation file; whether it has answers does not matter."""
    layouts = tuple(Layout(column, column) for column in _QUESTION_COLUMNS)
    source = SOURCES.get(name)
    unwrap = source.unwrap if source else str.strip
    return [
        item.question for item in read_problems(path, layouts, unwrap) if isinstance(item, Problem)
    ]


# --- cleaning and writing ----------------------------------------------------------------


def _clean(
    source: Source,
    split: str,
    paths: Sequence[Path],
    evaluation: Mapping[str, Sequence[str]],
    *,
    keep_duplicates: bool = False,
) -> Cleaned:
    items = itertools.chain.from_iterable(
        read_problems(path, source.layouts, source.unwrap, source.repair) for path in paths
    )
    if split == "test":
        return _as_published(items)
    return clean(
        items, mangled=source.mangled, evaluation=evaluation, keep_duplicates=keep_duplicates
    )


def _as_published(items: Iterator[Problem | Dropped]) -> Cleaned:
    """Every readable row: a test set that was cleaned is another test set."""
    read = list(items)
    kept = tuple(item for item in read if isinstance(item, Problem))
    dropped = tuple(item for item in read if isinstance(item, Dropped))
    return Cleaned(len(read), len({p.question for p in kept}), 0, kept, dropped, {})


def _write(
    source: Source,
    options: Options,
    prompt: str,
    cleaned: Mapping[str, Cleaned],
    origins: tuple[str, ...],
    not_checked: Mapping[str, str],
    not_prepared: Mapping[str, str],
    ability: str = "math",
) -> Prepared:
    splits: dict[str, Sequence[Problem]] = {}
    for name, found in cleaned.items():
        if not found.kept:
            raise DataError(f"no row of the {name} split is left: {_reasons(found)}")
        splits[name] = found.kept
    if "train" in splits:
        train, val = divide(splits["train"], options.val_size, options.seed)
        rest = {name: rows for name, rows in splits.items() if name != "train"}
        splits = {"train": train, **({"val": val} if val else {}), **rest}
    options.out.mkdir(parents=True, exist_ok=True)
    for stale in ("train", "val", "test"):
        (options.out / f"{stale}.parquet").unlink(missing_ok=True)
    for name, problems in splits.items():
        rows = as_rows(
            problems,
            split=name,
            data_source=source.name,
            ability=ability,
            prompt=prompt,
            system=options.system,
        )
        write_parquet(options.out / f"{name}.parquet", rows)
    prepared = Prepared(
        out=options.out,
        title=source.title,
        written={name: len(problems) for name, problems in splits.items()},
        cleaned=cleaned,
        origins=origins,
        not_checked=not_checked,
        not_prepared=not_prepared,
    )
    write_dropped(options.out / "dropped.jsonl", (d for c in cleaned.values() for d in c.dropped))
    write_report(options.out / "report.json", prepared.report())
    return prepared


def _account(cleaned: Cleaned) -> dict[str, Any]:
    return {
        "rows": cleaned.rows,
        "different_questions": cleaned.questions,
        "questions_repaired": sum(problem.repaired for problem in cleaned.kept),
        "questions_in_conflict": cleaned.conflicts,
        "dropped_rows": {str(reason): cleaned.counts.get(reason, 0) for reason in Reason},
        "overlap_questions": dict(cleaned.overlaps),
        "kept_rows": len(cleaned.kept),
    }


def _in_words(cleaned: Cleaned) -> Iterator[str]:
    for reason, count in cleaned.counts.items():
        more = f" ({cleaned.conflicts:,} questions)" if reason is Reason.CONFLICT else ""
        yield f"  {count:>7,} dropped: {reason}{more}"
    for name, count in cleaned.overlaps.items():
        yield f"  {count:>7,} questions in common with {name}"
    if repaired := sum(problem.repaired for problem in cleaned.kept):
        yield f"  {repaired:>7,} kept questions with damaged LaTeX, repaired"
    yield f"  {len(cleaned.kept):>7,} kept"


def _reasons(cleaned: Cleaned) -> str:
    first = next(iter(cleaned.dropped), None)
    counts = Counter({str(reason): count for reason, count in cleaned.counts.items()})
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return f"{listed}; row {first.rows[0]}: {first.detail}" if first else "it has no rows"
