"""Multi-hop question answering: three published layouts become the same files."""

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from agent_r1.config.load import load_config
from agent_r1.data.prepare import Options
from agent_r1.data.prepare.qa import prepare_qa, qa_source
from agent_r1.data.sources import load_configured
from agent_r1.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "qa"

HOTPOT = {
    "_id": "h1",
    "question": "What position was held by the woman who played Corliss Archer?",
    "answer": "Chief of Protocol",
    "type": "bridge",
    "level": "hard",
    "context": [
        ["Shirley Temple", ["She was an actress.", " Later she was Chief of Protocol."]],
        ["Rome", ["A city."]],
    ],
    "supporting_facts": [["Shirley Temple", 1]],
}
HUB = {
    **HOTPOT,
    "id": "h2",
    "question": "Where is Rome?",
    "answer": "Italy",
    "context": {"title": ["Rome"], "sentences": [["A city.", "It is in Italy."]]},
    "supporting_facts": {"title": ["Rome"], "sent_id": [1]},
}
MUSIQUE = {
    "id": "2hop__1",
    "question": "Who is the spouse of the director?",
    "answer": "Ann Lee",
    "answer_aliases": ["Ann", "Ann Lee"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Film", "paragraph_text": "By Bo.", "is_supporting": True},
        {"idx": 1, "title": "Sea", "paragraph_text": "Wet.", "is_supporting": False},
    ],
}
COMMON = {
    "question_id": "c1",
    "question_text": "Which came first?",
    "answers_objects": [{"number": "", "date": {}, "spans": ["Blind Shaft"]}],
    "contexts": [
        {"id": 0, "title": "Shaft", "paragraph_text": "Deep.", "is_supporting": True},
    ],
}


def written(tmp_path, name, files, **options):
    arguments = []
    for split, rows in files.items():
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(rows))
        arguments.append(f"{split}={path}")
    out = tmp_path / "out"
    prepared = prepare_qa(qa_source(name), Options(out, "bare", **options), files=arguments)
    tables = {
        s: pyarrow.parquet.read_table(out / f"{s}.parquet").to_pylist() for s in prepared.written
    }
    corpus = [json.loads(line) for line in (out / "corpus.jsonl").read_text().splitlines()]
    return prepared, tables, corpus


def test_every_layout_gives_question_answers_and_passages(tmp_path):
    rows = [HOTPOT, HUB, MUSIQUE, COMMON]
    prepared, tables, corpus = written(tmp_path, "2wiki", {"train": rows})
    assert prepared.written == {"train": 4}
    assert [row["reward_model"]["ground_truth"] for row in tables["train"]] == [
        ["Chief of Protocol"],
        ["Italy"],
        ["Ann Lee", "Ann"],
        ["Blind Shaft"],
    ]
    first = tables["train"][0]
    assert first["prompt"] == [{"role": "user", "content": HOTPOT["question"]}]
    assert first["data_source"] == "2wikimultihopqa"
    assert first["extra_info"]["supporting_titles"] == '["Shirley Temple"]'
    assert first["extra_info"]["type"] == "bridge"
    assert corpus == [
        {"title": "Shirley Temple", "text": "She was an actress. Later she was Chief of Protocol."},
        {"title": "Rome", "text": "A city."},
        {"title": "Rome", "text": "A city. It is in Italy."},
        {"title": "Film", "text": "By Bo."},
        {"title": "Sea", "text": "Wet."},
        {"title": "Shaft", "text": "Deep."},
    ]


def test_what_the_test_split_asks_is_not_trained_on_and_passages_are_kept_once(tmp_path):
    other = {**HOTPOT, "question": "Another question?"}
    files = {"train": [HOTPOT, other, other], "test": [HOTPOT]}
    prepared, tables, corpus = written(tmp_path, "hotpotqa", files)
    assert prepared.written == {"train": 1, "test": 1}
    assert tables["train"][0]["extra_info"]["question"] == "Another question?"
    assert len(corpus) == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    dropped = report["splits"]["train"]["dropped_rows"]
    assert (dropped["duplicate"], dropped["overlaps an evaluation set"]) == (1, 1)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**MUSIQUE, "answerable": False}, "not answerable"),
        ({**HOTPOT, "answer": " "}, "no answer"),
        ({"answer": "x", "context": []}, "no 'question_text'"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, row, why):
    written(tmp_path, "musique", {"train": [MUSIQUE, row]})
    (line,) = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert why in json.loads(line)["detail"] and json.loads(line)["rows"] == [2]


def test_a_collection_that_is_an_archive_needs_its_files(tmp_path):
    with pytest.raises(DataError, match=r"published as an archive.*--source train="):
        prepare_qa(qa_source("2wikimultihopqa"), Options(tmp_path))
    assert qa_source("HotpotQA").name == "hotpotqa"
    assert qa_source("gsm8k") is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_published_hotpotqa_files_become_tasks_and_a_corpus_that_answers(tmp_path):
    pytest.importorskip("bm25s")
    files = [
        f"train={SHARED / 'hotpotqa_train_100.json'}",
        f"test={SHARED / 'hotpotqa_dev_500_with_paragraphs.jsonl'}",
    ]
    out = tmp_path / "hotpotqa"
    options = Options(out, "search_r1", val_size=10)
    prepared = prepare_qa(qa_source("hotpotqa"), options, files=files)
    assert prepared.written == {"train": 90, "val": 10, "test": 500}
    config = load_config(None, [f"data.train_files={out / 'train.parquet'}"], environ={})
    tasks = load_configured(config.data, "train", 0).strict()
    assert len(tasks) == 90 and all(isinstance(task.answer, list) for task in tasks)

    from agent_r1.tool.search.index import open_index

    index = open_index(str(out / "corpus.jsonl"), cache_dir=str(tmp_path / "cache"))
    titles = [title for t in tasks for title in json.loads(t.extra["supporting_titles"])]
    found = [title in [p.title for p in index.search(title, 3)] for title in titles]
    assert sum(found) / len(found) > 0.95
