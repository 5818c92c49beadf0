"""Multi-hop question answering: HotpotQA, 2WikiMultihopQA and MuSiQue, by one preparation.

Each question comes with the passages that it was made from and some that distract. The
passages of all questions become ``corpus.jsonl``, which the ``search`` tool reads; the
questions become ``train.parquet``, ``val.parquet`` and ``test.parquet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_r1.data.prepare.catalogue import Address, Source
from agent_r1.data.prepare.clean import Cleaned, clean
from agent_r1.data.prepare.download import Downloader
from agent_r1.data.prepare.pipeline import Options, locate, refuse_overwriting
from agent_r1.data.prepare.problems import Dropped, Problem, Reason
from agent_r1.data.prepare.prompts import prompt_text
from agent_r1.data.prepare.write import (
    as_rows,
    divide,
    write_dropped,
    write_lines,
    write_parquet,
    write_report,
)
from agent_r1.data.sources_files import read_rows
from agent_r1.errors import DataError

_HOTPOT = "http://curtis.ml.cmu.edu/datasets/hotpot"
_MUSIQUE = (
    "https://huggingface.co/datasets/dgslibisey/MuSiQue/resolve/"
    "c8f4f8c9465fb69d31a8eae894c3fd509c4ca321"
)

QA_SOURCES = {
    source.name: source
    for source in (
        Source(
            name="hotpotqa",
            aliases=("hotpot",),
            title="HotpotQA, questions over two articles of Wikipedia",
            home="https://hotpotqa.github.io",
            licence="CC BY-SA 4.0",
            layouts=(),
            train=(Address(f"{_HOTPOT}/hotpot_train_v1.1.json"),),
            test=(Address(f"{_HOTPOT}/hotpot_dev_distractor_v1.json"),),
        ),
        Source(
            name="2wikimultihopqa",
            aliases=("2wiki", "2wikimultihop"),
            title="2WikiMultihopQA, questions with a path through Wikidata",
            home="https://github.com/Alab-NII/2wikimultihop",
            licence="Apache-2.0",
            layouts=(),
        ),
        Source(
            name="musique",
            title="MuSiQue-Ans, questions of two to four hops",
            home="https://github.com/StonyBrookNLP/musique",
            licence="CC BY 4.0",
            layouts=(),
            train=(Address(f"{_MUSIQUE}/musique_ans_v1.0_train.jsonl"),),
            test=(Address(f"{_MUSIQUE}/musique_ans_v1.0_dev.jsonl"),),
        ),
    )
}
"""By name. The published development sets serve as ``test``: the answers of the test sets are
not public. 2WikiMultihopQA is published as an archive, so its files must be given."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with everything that is known of it."""

    problem: Problem
    answers: tuple[str, ...]
    """Acceptable ones, the canonical one first."""
    passages: tuple[tuple[str, str], ...]
    """Title and text of each."""


def qa_source(name: str) -> Source | None:
    """The collection of this name or alias, if it is one of question answering."""
    wanted = name.casefold().replace("_", "-")
    for source in QA_SOURCES.values():
        if wanted == source.name or wanted in source.aliases:
            return source
    return None


def read_questions(path: Path) -> Iterator[Question | Dropped]:
    """The questions of a file in any of the published layouts, told apart row by row.

    ``question``/``context`` (HotpotQA, 2WikiMultihopQA; as JSON and as on the Hub),
    ``question``/``paragraphs`` (MuSiQue) and ``question_text``/``contexts`` (the common
    format of arXiv 2212.10509).
    """
    for row in read_rows(path):
        if row.values is None:
            yield Dropped(Reason.UNREADABLE, path.name, (row.number,), row.error)
            continue
        try:
            yield _question(path.name, row.number, row.values)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            yield Dropped(Reason.UNREADABLE, path.name, (row.number,), reason)


def _question(file: str, number: int, row: Mapping[str, Any]) -> Question:
    question = str(row.get("question") or row["question_text"]).strip()
    answers = tuple(dict.fromkeys(a for a in map(str.strip, _answers(row)) if a))
    if not question or not answers:
        raise ValueError("no question" if not question else "no answer")
    known = ("type", "level", "answer_type", "reasoning_type")
    extra = {key: row[key] for key in known if row.get(key)}
    identity = row.get("_id") or row.get("id") or row.get("question_id")
    if identity:
        extra["question_id"] = identity
    supporting = [title for title, _, supports in _passages(row) if supports]
    if supporting:
        extra["supporting_titles"] = json.dumps(list(dict.fromkeys(supporting)))
    passages = tuple((title, text) for title, text, _ in _passages(row))
    return Question(Problem(file, number, question, answers[0], extra), answers, passages)


def _answers(row: Mapping[str, Any]) -> Iterable[str]:
    if row.get("answerable") is False:
        raise ValueError("marked as not answerable")
    if "answers_objects" in row:
        for given in row["answers_objects"]:
            yield from given["spans"] or [str(given["number"])]
        return
    yield str(row["answer"])
    yield from map(str, row.get("answer_aliases") or ())


def _passages(row: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Title, text, and whether the answer rests on it."""
    listed = row.get("paragraphs") or row.get("contexts")
    if listed:
        for each in listed:
            text = each.get("paragraph_text") or each.get("text") or ""
            yield str(each["title"]).strip(), str(text).strip(), bool(each.get("is_supporting"))
        return
    context, facts = row.get("context") or (), row.get("supporting_facts") or ()
    if isinstance(context, str):
        context = json.loads(context)
    if isinstance(context, Mapping):  # as on the Hub: columns instead of pairs
        texts = context.get("sentences") or context["content"]
        context = list(zip(context["title"], texts, strict=True))
    titles = facts["title"] if isinstance(facts, Mapping) else [fact[0] for fact in facts]
    for title, sentences in context:
        yield str(title).strip(), "".join(_spaced(sentences)).strip(), title in titles


def _spaced(sentences: Sequence[str]) -> Iterator[str]:
    """Sentences with a space between, where they have none of their own."""
    for i, sentence in enumerate(sentences):
        yield sentence if i == 0 or sentence.startswith(" ") else f" {sentence}"


@dataclass(frozen=True, slots=True)
class QaPrepared:
    """What was written, and the account of every row."""

    out: Path
    title: str
    written: Mapping[str, int]
    passages: int
    cleaned: Mapping[str, Cleaned]
    origins: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        return {
            "collection": self.title,
            "read_from": list(self.origins),
            "splits": {
                split: {
                    "rows": found.rows,
                    "kept_rows": len(found.kept),
                    "dropped_rows": {str(reason): n for reason, n in found.counts.items()},
                    "overlap_questions": dict(found.overlaps),
                }
                for split, found in self.cleaned.items()
            },
            "written": dict(self.written),
            "passages": self.passages,
        }

    def lines(self) -> Iterator[str]:
        yield self.title
        for origin in self.origins:
            yield f"  from {origin}"
        for split, found in self.cleaned.items():
            yield f"{split}: {found.rows:,} rows, {len(found.kept):,} kept"
            for reason, count in found.counts.items():
                yield f"  {count:>7,} dropped: {reason}"
        for split, count in self.written.items():
            yield f"wrote {count:,} rows to {self.out / split}.parquet"
        yield f"wrote {self.passages:,} passages to {self.out / 'corpus.jsonl'}"

    def warnings(self) -> Iterator[str]:
        yield from ()


def prepare_qa(
    source: Source,
    options: Options,
    *,
    files: Sequence[str] = (),
    downloader: Downloader | None = None,
) -> QaPrepared:
    """Make training files and the corpus of a collection.

    Training questions lose duplicates, contradictions and what the test split asks too. Test
    questions are taken as they are published. The corpus has every passage of every question
    that was read, once.

    Raises:
        DataError: a file cannot be had or read, or is there already.
    """
    prompt = prompt_text(options.prompt)
    refuse_overwriting(options)
    if not files and not source.splits:
        raise DataError(
            f"{source.title} is published as an archive; get it from {source.home} and name its "
            "files: --source train=train.json --source test=dev.json"
        )
    places, origins = locate(source, files, downloader or Downloader(), splits=("train", "test"))
    read = {
        split: [item for path in paths for item in read_questions(path)]
        for split, paths in places.items()
    }
    cleaned = _cleaned(source, read)
    splits = _divided(source, cleaned, options)
    questions = [q for found in read.values() for q in found if isinstance(q, Question)]
    options.out.mkdir(parents=True, exist_ok=True)
    for stale in ("train", "val", "test"):
        (options.out / f"{stale}.parquet").unlink(missing_ok=True)
    answers = {(q.problem.file, q.problem.row): list(q.answers) for q in questions}
    for name, problems in splits.items():
        rows = as_rows(
            problems,
            split=name,
            data_source=source.name,
            ability="qa",
            prompt=prompt,
            system=options.system,
            answer=lambda problem: answers[problem.file, problem.row],
        )
        write_parquet(options.out / f"{name}.parquet", rows)
    passages = list(dict.fromkeys(passage for q in questions for passage in q.passages))
    documents = ({"title": title, "text": text} for title, text in passages)
    write_lines(options.out / "corpus.jsonl", documents)
    written = {name: len(problems) for name, problems in splits.items()}
    prepared = QaPrepared(
        options.out, source.title, written, len(passages), cleaned, tuple(origins)
    )
    write_dropped(options.out / "dropped.jsonl", (d for c in cleaned.values() for d in c.dropped))
    write_report(options.out / "report.json", prepared.report())
    return prepared


def _divided(
    source: Source, cleaned: Mapping[str, Cleaned], options: Options
) -> dict[str, Sequence[Problem]]:
    splits: dict[str, Sequence[Problem]] = {name: found.kept for name, found in cleaned.items()}
    for name, found in cleaned.items():
        if not found.kept:
            why = f": {found.dropped[0].detail}" if found.dropped else ""
            raise DataError(f"no row of the {name} split of {source.title} is left{why}")
    if "train" in splits:
        train, val = divide(splits.pop("train"), options.val_size, options.seed)
        splits = {"train": train, **({"val": val} if val else {}), **splits}
    return splits


def _cleaned(
    source: Source, read: Mapping[str, Sequence[Question | Dropped]]
) -> dict[str, Cleaned]:
    items = {
        split: [item.problem if isinstance(item, Question) else item for item in found]
        for split, found in read.items()
    }
    asked = [p.question for p in items.get("test", ()) if isinstance(p, Problem)]
    evaluation = {source.name: asked} if asked else {}
    cleaned: dict[str, Cleaned] = {}
    for split, found in items.items():
        if split == "test":
            kept = tuple(p for p in found if isinstance(p, Problem))
            dropped = tuple(d for d in found if isinstance(d, Dropped))
            questions = len({p.question for p in kept})
            cleaned[split] = Cleaned(len(found), questions, 0, kept, dropped, {})
        else:
            cleaned[split] = clean(iter(found), mangled=None, evaluation=evaluation)
    return cleaned
