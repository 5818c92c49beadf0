"""Collections and users' tables to clean files; every row is accounted for."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent_r1.data.prepare import Options, convert, prepare
from agent_r1.data.prepare.catalogue import (
    EVALUATION,
    SOURCES,
    with_backslashes,
    without_instructions,
)
from agent_r1.data.prepare.clean import clean, fingerprint, rounded_by_a_float
from agent_r1.data.prepare.download import Downloader
from agent_r1.data.prepare.problems import Dropped, Problem, Reason
from agent_r1.data.prepare.prompts import STYLES, fill, prompt_text
from agent_r1.data.prepare.reading import after_hashes, by_its_marks, last_box
from agent_r1.data.sources import read_tasks
from agent_r1.errors import DataError
from agent_r1.reward.answers import final_answer
from agent_r1.tool.envs.retool import ReToolEnv

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
with_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no data beside this repository")


@pytest.fixture
def offline(tmp_path):
    return Downloader(tmp_path / "cache", offline=True)


def serving(cache, pages):
    """A downloader in whose web there are these pages, by path."""

    def answer(request):
        page = pages.get(request.url.path)
        return httpx.Response(404) if page is None else httpx.Response(200, content=page)

    return Downloader(cache, transport=httpx.MockTransport(answer))


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder, split):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def dropped_in(folder):
    return [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]


# --- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "text", "answer"),
    [
        (after_hashes, "so 1,000 + 80\n#### 1,080", "1080"),
        (after_hashes, "#### 5\n#### 109,200,000", "109200000"),
        (after_hashes, "#### (1,2)", "(1,2)"),
        (last_box, r"\boxed{1} then $\boxed{\frac{\sqrt{2}}{3}}$.", r"\frac{\sqrt{2}}{3}"),
        (last_box, r"so $\boxed 7$.", "7"),
        (last_box, r"\fbox{\text{(A)}}", r"\text{(A)}"),
        (by_its_marks, "thus #### 3", "3"),
        (by_its_marks, r"thus \boxed{4}", "4"),
        (by_its_marks, " five ", "five"),
    ],
)
def test_how_answers_are_read(reader, text, answer):
    assert reader(text) == answer


@pytest.mark.parametrize(
    ("reader", "text"), [(after_hashes, "18"), (last_box, "18"), (last_box, r"\boxed{}")]
)
def test_an_answer_that_is_not_there_is_no_answer(reader, text):
    with pytest.raises(ValueError):
        reader(text)


def test_the_published_instructions_and_broken_escapes_are_taken_off():
    wrapped = (
        "Solve the following math problem step by step. The last line of your response should be "
        "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
        '\n\nWhat is 1 + 1?\n\nRemember to put your answer on its own line after "Answer:".'
    )
    assert without_instructions(wrapped) == "What is 1 + 1?"
    assert with_backslashes("of the form \x0crac{m}{n}.") == r"of the form \frac{m}{n}."
    assert with_backslashes("a \text{b} and \nabla f, \x08eta") == r"a \text{b} and \nabla f, \beta"
    for unharmed in ("a\nb\tc", r"\frac{m}{n}", "first\nable\text"):
        assert with_backslashes(unharmed) == unharmed


# --- cleaning ----------------------------------------------------------------------------


def problems(*pairs):
    return [Problem("f", row, question, answer) for row, (question, answer) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is $x+1$?", r"what is \( x + 1 \)", True),
        (r"\dfrac{1}{2} of\, it", r"$\frac{1}{2}$ of it.", True),
        (r"\left( 3, 4 \right)", "(3,4)", True),
        ("x^8 - 98x^4", "x^8 + 98x^4", False),
        (r"\frac{2n-1}{n}", r"\frac{2n+1}{n}", False),
        ("a < b", "a > b", False),
        ("\u6c42 1\uff0c2", "\u6c42 1, 2", True),
    ],
)
def test_what_makes_two_questions_one(one, other, same):
    assert (fingerprint(one) == fingerprint(other)) is same


@pytest.mark.parametrize(
    ("answer", "rounded"),
    [
        ("105263157894736848", True),  # the answer is ...842
        ("22099999999999998951424", True),
        ("20000000000000000000000", True),
        ("105263157894736842", False),
        ("9007199254740993", False),
        ("9007199254740992", False),
        ("9007199254740994", True),
        ("-9007199254740994", True),
        ("476837158203126", False),
        ("1" + "0" * 399, False),
        ("x" * 20, False),
        ("34", False),
    ],
)
def test_integers_that_went_through_a_float(answer, rounded):
    assert rounded_by_a_float(answer) is rounded


def test_each_row_is_kept_or_named():
    items = [
        *problems(
            ("What is 1 + 1?", "2"),
            ("what is 1+1", "2.0"),
            ("Contested?", "3"),
            ("In the exam?", "4"),
            ("Contested", "5"),
            ("In the exam?", "4"),
            ("Mangled?", "105263157894736848"),
            ("What is 1 - 1?", "0"),
            ("Mangled?", "105263157894736842"),
        ),
        Dropped(Reason.UNREADABLE, "f", (10,), "no valid JSON"),
    ]
    cleaned = clean(
        items,
        mangled=rounded_by_a_float,
        evaluation={"exam": ["in the exam", "something else"], "other": ["In the exam?"]},
    )
    assert [p.row for p in cleaned.kept] == [1, 8, 9]
    assert (cleaned.rows, cleaned.questions, cleaned.conflicts) == (10, 5, 1)
    assert {str(d.reason): d.rows for d in cleaned.dropped if d.reason is not Reason.CONFLICT} == {
        "mangled answer": (7,),
        "unreadable": (10,),
        "overlaps an evaluation set": (4,),
        "duplicate": (6,),  # and row 2, checked below
    }
    assert [d.rows for d in cleaned.dropped if d.reason is Reason.DUPLICATE] == [(2,), (6,)]
    conflicting = [d for d in cleaned.dropped if d.reason is Reason.CONFLICT]
    assert [d.rows for d in conflicting] == [(3,), (5,)]
    assert conflicting[0].detail == "answers: 3 | 5"
    assert cleaned.overlaps == {"exam": 1, "other": 1}
    assert sum(cleaned.counts.values()) + len(cleaned.kept) == cleaned.rows


def test_equal_answers_in_other_words_are_no_contradiction():
    pairs = problems(("q", r"\frac13"), ("q", r"\frac{1}{3}"), ("q", "1/3"))
    assert clean(pairs).conflicts == 0
    assert [p.row for p in clean(pairs).kept] == [1]
    assert [p.row for p in clean(pairs, keep_duplicates=True).kept] == [1, 2, 3]


# --- prompts -----------------------------------------------------------------------------


def test_the_retool_prompt_speaks_the_environments_language():
    text = fill(prompt_text("retool"), "What is \\frac{1}{2}?")
    assert "What is \\frac{1}{2}?" in text and "{question}" not in text
    assert "<interpreter>" in text
    example = text[: text.index("</code>") + len("</code>")]
    (program,) = ReToolEnv.extract_tool_calls(None, example)
    assert eval(program.removeprefix("print")) == 385  # the example is a program that works
    assert final_answer(text) == "the final answer"


def test_prompt_styles(tmp_path):
    assert all("{question}" in text for text in STYLES.values())
    (tmp_path / "mine.txt").write_text("Q: {question} {x}\n")
    assert fill(prompt_text(str(tmp_path / "mine.txt")), "1?") == "Q: 1? {x}"
    (tmp_path / "none.txt").write_text("Q:")
    with pytest.raises(DataError, match=r"must contain \{question\}"):
        prompt_text(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="styles: retool, retool_session, plain, bare"):
        prompt_text("retol")


# --- whole runs --------------------------------------------------------------------------


def gsm(question, answer):
    return {"question": question, "answer": f"work\n#### {answer}"}


def test_a_collection_from_local_files(tmp_path, offline):
    train = jsonl(
        tmp_path / "train.jsonl",
        [gsm(f"What is {n} * 1000?", f"{n},000") for n in range(1, 41)]
        + [gsm("what is 1*1000", "1000"), {"question": "?"}, gsm("Tested?", "1")],
    )
    test = jsonl(tmp_path / "test.jsonl", [gsm("Tested?", "1"), gsm("Tested?", "1")])
    out = tmp_path / "out"
    files = [str(train), f"test={test}"]
    prepared = prepare("gsm8k", Options(out, val_size=10), files=files, downloader=offline)
    assert prepared.written == {"train": 30, "val": 10, "test": 2}
    first = rows_of(out, "train")[0]
    number = first["extra_info"]["source_row"]
    assert first["data_source"] == "gsm8k" and first["ability"] == "math"
    assert first["reward_model"] == {"style": "rule", "ground_truth": f"{number}000"}
    assert first["extra_info"] == {
        "split": "train",
        "index": 0,
        "question": f"What is {number} * 1000?",
        "source_file": "train.jsonl",
        "source_row": number,
    }
    assert [m["role"] for m in first["prompt"]] == ["user"]
    assert first["extra_info"]["question"] in first["prompt"][0]["content"]
    assert [(d["rows"], d["reason"]) for d in dropped_in(out)] == [
        ([42], "unreadable"),
        ([41], "duplicate"),
        ([43], "overlaps an evaluation set"),
    ]
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["dropped_rows"]["duplicate"] == 1
    assert report["splits"]["train"]["overlap_questions"] == {"gsm8k": 1}
    assert set(report["overlap_not_checked"]) == set(EVALUATION) - {"gsm8k"}
    told = "\n".join([*prepared.lines(), *prepared.warnings()])
    assert "NOT checked for overlap with math500" in told and "--against math500=FILE" in told
    tasks = read_tasks(out / "val.parquet").strict()
    assert len(tasks) == 10 and tasks[0].data_source == "gsm8k"


def test_the_split_follows_the_seed_and_not_the_order(tmp_path, offline):
    rows = [gsm(f"What is {n} + {n}?", str(2 * n)) for n in range(60)]

    def val(name, rows, seed):
        file = jsonl(tmp_path / f"{name}.jsonl", rows)
        options = Options(tmp_path / name, val_size=12, seed=seed)
        prepare("gsm8k", options, files=[str(file)], downloader=offline)
        train, val = (
            {row["extra_info"]["question"] for row in rows_of(options.out, split)}
            for split in ("train", "val")
        )
        assert not train & val and len(train | val) == 60
        return val

    assert val("a", rows, 0) == val("b", rows[::-1], 0) != val("c", rows, 1)


def test_what_cannot_be_downloaded_is_asked_for(tmp_path, offline):
    with pytest.raises(DataError, match=r"Without a network, .* --source train=FILE"):
        prepare("retool", Options(tmp_path / "x"), downloader=offline)
    with pytest.raises(DataError, match="did you mean 'gsm8k'"):
        prepare("gsm8", Options(tmp_path / "x"))
    with pytest.raises(DataError, match="has no split 'dev'; it has train, test"):
        prepare("gsm8k", Options(tmp_path / "x"), files=["dev=f"], downloader=offline)
    assert not (tmp_path / "x").exists()


def test_published_files_are_fetched_with_the_evaluation_sets(tmp_path):
    train = "/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    page = b'{"question": "1 + 1?", "answer": "#### 2"}\n'
    pages = {f"{train}grade_school_math/data/{name}.jsonl": page for name in ("train", "test")}
    fetcher = serving(tmp_path / "cache", pages)
    with pytest.raises(DataError, match=r"cannot be downloaded: .*is not the file it was"):
        prepare("gsm8k", Options(tmp_path / "x"), downloader=fetcher)
    math = SOURCES["math"]
    rows = [{"problem": f"{n}?", "solution": f"\\boxed{{{n}}}"} for n in range(4)]
    files = {name: jsonl(tmp_path / f"{name}.jsonl", rows[i:]) for i, name in enumerate("ab")}
    parquet = {}
    for split, name in (("train", "a"), ("test", "b")):
        table = [json.loads(line) for line in files[name].read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{split}.parquet")
        parquet[httpx.URL(math.split(split)[0].url).path] = (
            tmp_path / f"{split}.parquet"
        ).read_bytes()
    fetcher = serving(tmp_path / "cache2", parquet)
    prepared = prepare("math", Options(tmp_path / "y"), downloader=fetcher)
    assert prepared.written == {"train": 1, "test": 3}
    assert prepared.cleaned["train"].overlaps == {"math": 3}
    assert set(prepared.not_checked) == set(EVALUATION) - {"math"}
    assert "answers 404" in prepared.not_checked["math500"]


def test_files_that_are_there_are_not_replaced_unasked(tmp_path, offline):
    file = jsonl(tmp_path / "aime24.jsonl", [{"input": "1?", "output": "1"}])
    options = Options(tmp_path / "out")
    prepare("aime24", options, files=[str(file)], downloader=offline)
    with pytest.raises(DataError, match=r"has test.parquet already.*--force"):
        prepare("aime24", options, files=[str(file)], downloader=offline)
    prepare("aime24", Options(tmp_path / "out", force=True), files=[str(file)], downloader=offline)


def test_a_users_table(tmp_path, offline):
    file = tmp_path / "mine.csv"
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["problem", "solution", "topic"])
        writer.writerow(["1 + 1?", r"It is \boxed{2}.", "sums"])
        writer.writerow(["2 + 2?", "4", "sums"])
        writer.writerow(["3 + 3?", "", "sums"])
        writer.writerow(["4 + 4?"])
        writer.writerow(["5 + 5?", "10", "sums"])
    exam = jsonl(tmp_path / "exam.jsonl", [{"question": "5+5"}])
    prepared = convert(
        [file],
        Options(tmp_path / "out", prompt="plain", system="Be brief.", against=(str(exam),)),
        question="problem",
        answer="solution",
        extra=("topic",),
        downloader=offline,
    )
    assert prepared.written == {"train": 2}
    rows = rows_of(tmp_path / "out", "train")
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["2", "4"]
    assert [m["role"] for m in rows[0]["prompt"]] == ["system", "user"]
    assert rows[0]["prompt"][1]["content"].startswith("1 + 1?\n")
    assert rows[0]["extra_info"]["topic"] == "sums" and rows[0]["data_source"] == "mine"
    assert [(d["rows"], d["reason"], d["detail"]) for d in dropped_in(tmp_path / "out")] == [
        ([4], "unreadable", "no answer in column 'solution'"),
        ([5], "unreadable", "not as many fields as the header (3)"),
        ([6], "overlaps an evaluation set", "in exam"),
    ]
    assert prepared.cleaned["train"].overlaps == {"exam": 1}


def test_what_a_users_table_may_hold(tmp_path, offline):
    values = [3, 3.5, 4.0, True, "1e5", None, float("nan"), {"a": 1}, [1]]
    rows = [{"q": [{"role": "user", "content": f"{n}?"}], "a": v} for n, v in enumerate(values)]
    file = jsonl(tmp_path / "t.jsonl", [*rows, {"q": [{"role": "user", "content": "x"}] * 2}])
    convert([file], Options(tmp_path / "o"), question="q", answer="a", downloader=offline)
    answers = [row["reward_model"]["ground_truth"] for row in rows_of(tmp_path / "o", "train")]
    assert answers == ["3", "3.5", "4", "True", "1e5"]
    details = [d["detail"] for d in dropped_in(tmp_path / "o")]
    assert details[2].endswith("name one of its columns: a.a")
    assert len(details) == 5
    with pytest.raises(DataError, match=r"has not the columns z \+ a.*its columns: q, a"):
        convert([file], Options(tmp_path / "p"), question="z", answer="a", downloader=offline)


def test_the_tutorials_script(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} + 1?"}],
            "reward_model": {"ground_truth": str(n + 1)},
        }
        for n in range(9)
    ]
    source = jsonl(tmp_path / "dapo.jsonl", rows)
    script = ROOT / "examples" / "data_preprocess" / "retool.py"
    command = [sys.executable, str(script), "--local_dir", "./data/retool", "--val_size", "2"]
    # an empty cache, and a proxy that is not there instead of a network
    environment = {
        "PATH": "",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [*command, "--source", str(source)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "wrote 7 rows to data/retool/train.parquet" in done.stdout
    assert "NOT checked for overlap with aime24" in done.stderr
    assert len(rows_of(tmp_path / "data" / "retool", "val")) == 2


# --- the real files ----------------------------------------------------------------------


@with_shared_data
def test_the_real_dapo_file(tmp_path, offline):
    sets = {
        "math500": "math/math500.jsonl",
        "aime24": "competition/aime24.jsonl",
        "aime25": "competition/aime25.jsonl",
        "gsm8k": "gsm8k/test.jsonl",
    }
    options = Options(
        tmp_path / "o",
        val_size=500,
        against=tuple(f"{name}={SHARED / path}" for name, path in sets.items()),
    )
    file = SHARED / "rl_math" / "dapo_math_17k.parquet"
    prepared = prepare("dapo", options, files=[str(file)], downloader=offline)
    cleaned = prepared.cleaned["train"]
    assert (cleaned.rows, cleaned.conflicts) == (17_917, 25)
    assert cleaned.counts[Reason.MANGLED] == 5
    assert cleaned.overlaps == {"math500": 7, "aime24": 0, "aime25": 0, "gsm8k": 0}
    assert sum(cleaned.counts.values()) + len(cleaned.kept) == 17_917
    assert sum(prepared.written.values()) == len(cleaned.kept)
    assert list(prepared.not_checked) == ["math"]
    named = [row for d in dropped_in(tmp_path / "o") for row in d["rows"]]
    kept = [
        row["extra_info"]["source_row"]
        for split in ("train", "val")
        for row in rows_of(tmp_path / "o", split)
    ]
    assert sorted(named + kept) == list(range(1, 17_918))


@with_shared_data
@pytest.mark.parametrize(
    ("name", "files", "kept"),
    [
        (
            "gsm8k",
            ["train=gsm8k/train.jsonl", "test=gsm8k/test.jsonl"],
            {"train": 7473, "test": 1319},
        ),
        ("math", ["train=math/train.parquet"], {"train": 7493}),
        ("math500", ["test=math/math500.jsonl"], {"test": 500}),
        ("aime24", ["test=competition/aime24.jsonl"], {"test": 30}),
        ("aime25", ["test=competition/aime25.jsonl"], {"test": 30}),
    ],
)
def test_the_other_real_files(tmp_path, offline, name, files, kept):
    given = [f.replace("=", f"={SHARED}/") for f in files]
    prepared = prepare(name, Options(tmp_path / "o"), files=given, downloader=offline)
    assert prepared.written == kept
    rows = [row for split in kept for row in rows_of(tmp_path / "o", split)]
    answers = [row["reward_model"]["ground_truth"] for row in rows]
    assert all(final_answer(f"\\boxed{{{answer}}}") == answer.strip() for answer in answers)
