"""Files and generators to tasks; nothing vanishes silently."""

import csv
import gzip
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent_r1.data.sources import (
    Columns,
    load_tasks,
    read_tasks,
    register_generator,
    split_overlong,
)
from agent_r1.errors import DataError, RegistryError
from agent_r1.types import Task

SHARED = Path(__file__).parents[3] / "shared" / "data"
QA = Columns(prompt="question", answer="answer")


def verl_row(n, **changes):
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": f"{n} + 1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
        "extra_info": {"split": "train", "index": n},
        **changes,
    }


def write(path, rows):
    """Rows in whatever format the file's name says."""
    name = path.name.removesuffix(".gz")
    text = None
    if name.endswith(".jsonl"):
        text = "\n".join(json.dumps(row) for row in rows)
    elif name.endswith(".json"):
        text = json.dumps(rows)
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            delimiter = "\t" if name.endswith(".tsv") else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    if text is not None:
        data = text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_file_in_verls_schema_is_read_as_it_is(tmp_path, name):
    tasks = read_tasks(write(tmp_path / name, [verl_row(1), verl_row(2)])).strict()
    assert tasks[1] == Task(
        id="a:2",
        prompt=({"role": "user", "content": "2 + 1?"},),
        answer="3",
        data_source="sums",
        extra={"split": "train", "index": 2, "ability": "math"},
    )


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "a.tsv", "a.ndjson.gz"]
)
def test_plain_columns_are_mapped(tmp_path, name):
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": 'a "b",\nü', "answer": "3"}]
    if "ndjson" in name:
        (tmp_path / name).write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        write(tmp_path / name, rows)
    tasks = read_tasks(tmp_path / name, QA).strict()
    assert [(t.prompt, t.answer, t.data_source) for t in tasks] == [
        ("1 + 1?", "2", "a"),
        ('a "b",\nü', "3", "a"),
    ]


def test_a_template_a_system_message_and_chat(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "1 + 1?", "answer": 2}])

    def prompt(**options):
        columns = Columns(prompt="question", answer="answer", **options)
        return read_tasks(file, columns).strict()[0].prompt

    assert prompt() == "1 + 1?"
    template = "Q: {prompt} Use \\boxed{}. {prompt}"
    assert prompt(template=template) == "Q: 1 + 1? Use \\boxed{}. 1 + 1?"
    assert prompt(chat=True) == ({"role": "user", "content": "1 + 1?"},)
    assert prompt(system="Be brief.") == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
    )


def test_messages_in_a_csv_cell_are_messages(tmp_path):
    messages = [{"role": "user", "content": "1 + 1?"}]
    file = write(tmp_path / "a.csv", [{"question": json.dumps(messages), "answer": "2"}])
    assert read_tasks(file, QA).strict()[0].prompt == tuple(messages)


BAD = [
    ('{"question": "ok", "answer": "1"}', None),
    ('{"question": "cut off', "no valid JSON"),
    ("[1, 2]", "a JSON object expected, not list"),
    ('{"question": "", "answer": "1"}', "an empty prompt"),
    ('{"question": "q", "answer": " "}', "an empty answer in column 'answer'"),
    ('{"question": "q"}', "no answer in column 'answer'"),
    ('{"answer": "1"}', "no prompt in column 'question'"),
    ('{"question": null, "answer": "1"}', "no prompt in column 'question'"),
    ('{"question": "q", "answer": null}', "no answer in column 'answer'"),
    ('{"question": "q", "answer": NaN}', "is not a number (NaN)"),
    ('{"question": [], "answer": "1"}', "text or a list of messages"),
    ('{"question": [{"role": "user"}], "answer": "1"}', "neither 'content' nor 'tool_calls'"),
    ('{"question": [{"role": "user", "content": " "}], "answer": "1"}', "an empty prompt"),
    ('{"question": 3, "answer": "1"}', "text or a list of messages"),
]


def test_bad_rows_are_reported_by_number_and_reason(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n\n".join(line for line, _ in BAD))
    loaded = read_tasks(file, QA)
    assert [t.prompt for t in loaded.tasks] == ["ok"]
    expected = [(2 * i + 1, reason) for i, (_, reason) in enumerate(BAD) if reason]
    assert [row.number for row in loaded.bad] == [number for number, _ in expected]
    for row, (_, reason) in zip(loaded.bad, expected, strict=True):
        assert reason in row.reason
    with pytest.raises(DataError) as error:
        loaded.strict()
    lines = str(error.value).splitlines()
    assert lines[0] == "13 of 14 rows are no usable tasks:"
    assert len(lines) == 12 and lines[-1] == "  ..."
    assert lines[1] == f"  {file}, row 3: " + loaded.bad[0].reason


def test_a_csv_row_of_another_width_is_bad(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("question,answer\n1 + 1?,2\nno answer\n3 + 3?,6,7\n")
    loaded = read_tasks(file, QA)
    assert len(loaded.tasks) == 1
    assert [str(row) for row in loaded.bad] == [
        f"{file}, row 3: not as many fields as the header (2)",
        f"{file}, row 4: not as many fields as the header (2)",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_missing_column_names_those_that_are_there(tmp_path, name):
    file = write(tmp_path / name, [{"question": "q", "solution": "1", "level": "3"}])
    with pytest.raises(DataError, match=r"no column 'prompt' \(data.prompt_key\), did you mean 'q"):
        read_tasks(file)
    with pytest.raises(DataError) as error:
        read_tasks(file, Columns(prompt="question", answer="answer"))
    assert "no column 'answer' (data.answer_key), did you mean 'solution'?" in str(error.value)
    assert str(error.value).endswith("its columns: question, solution, level")


def test_dots_descend_unless_the_column_itself_has_them(tmp_path):
    row = {"q.text": "q", "truth": {"deep": {"er": "1"}}}
    file = write(tmp_path / "a.jsonl", [row])
    task = read_tasks(file, Columns(prompt="q.text", answer="truth.deep.er")).strict()[0]
    assert (task.prompt, task.answer) == ("q", "1")
    with pytest.raises(DataError, match=r"columns: q.text, truth, truth.deep, truth.deep.er"):
        read_tasks(file, Columns(prompt="q.text", answer="truth.deep.est"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "unknown data format '.txt'; known: .jsonl"),
        ("a.json", b"{", "is no valid JSON"),
        ("a.json", b'{"x": 1}', "must hold a list of objects"),
        ("a.jsonl", b"\xff\xfe\x00", "cannot be read: UnicodeDecodeError"),
        ("a.jsonl.gz", b"no gzip", "cannot be read: BadGzipFile"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.jsonl", b"", "no usable task in"),
        ("a.jsonl", b"{}\n{", "no column 'question'"),
        ("a.jsonl", b"[]\n", "no usable task in .*\n.*row 1: a JSON object expected"),
    ],
)
def test_a_file_that_is_no_data_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tasks(tmp_path / name, QA)


def test_a_missing_file_shows_what_lies_there(tmp_path):
    write(tmp_path / "train.jsonl", [verl_row(1)])
    with pytest.raises(DataError, match=r"there is no data file .*; the folder has: train\.jsonl"):
        read_tasks(tmp_path / "tran.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        read_tasks(tmp_path / "nowhere" / "train.jsonl")


def test_several_files_keep_their_order_and_unique_ids(tmp_path):
    (tmp_path / "b").mkdir()
    one = write(tmp_path / "a.jsonl", [verl_row(1), verl_row(2)])
    two = write(tmp_path / "b" / "a.parquet", [verl_row(3)])
    tasks = load_tasks([one, two]).strict()
    assert [(t.id, t.answer) for t in tasks] == [("a:1", "2"), ("a:2", "3"), ("a-2:1", "4")]
    assert len(load_tasks([one, two], max_samples=2).tasks) == 2


def test_an_id_column_must_be_unique(tmp_path):
    columns = Columns(id="extra_info.index")
    file = write(tmp_path / "a.jsonl", [verl_row(7), verl_row(8)])
    assert [t.id for t in read_tasks(file, columns).tasks] == ["7", "8"]
    write(file, [verl_row(7), verl_row(7)])
    with pytest.raises(DataError, match="two tasks have the id '7'"):
        read_tasks(file, columns)
    write(file, [verl_row(7), verl_row(8, extra_info={})])
    assert "no id in column" in read_tasks(file, columns).bad[0].reason


@register_generator("test-sums")
def sums(split, seed, *, limit=3):
    for n in range(limit):
        yield Task(f"{split}-{seed}-{n}", f"{n} + {seed}?", n + seed)


@register_generator("test-endless")
def endless(split, seed):
    return (Task(f"{n}", "q", n) for n in itertools.count())


@register_generator("test-wrong")
def wrong(split, seed, *, what):
    yield Task("1", "q", 1)
    yield {"dict": {"prompt": "q"}, "empty": Task("2", "", 1), "same": Task("1", "q", 1)}[what]


def test_a_generator_gives_tasks():
    tasks = load_tasks(["generator:test-sums"], split="val", seed=4, options={"limit": 2}).strict()
    assert tasks == (Task("val-4-0", "0 + 4?", 4), Task("val-4-1", "1 + 4?", 5))
    assert len(load_tasks(["generator:test-endless"], max_samples=5).tasks) == 5


def test_a_generator_in_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from agent_r1.types import Task\n"
        "def tasks(split, seed):\n    return [Task('1', split, seed)]\n"
    )
    tasks = load_tasks([f"generator:{file}:tasks"], split="val", seed=2).strict()
    assert tasks == (Task("1", "val", 2),)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("test-sum", {}, "no task generator is called 'test-sum', did you mean 'test-sums'"),
        ("test-sums", {"limt": 1}, "generator 'test-sums' failed after 0 tasks .*'limt'"),
        ("test-wrong", {"what": "dict"}, "task 2: a Task expected, not dict"),
        ("test-wrong", {"what": "empty"}, "task 2: an empty prompt"),
        ("test-wrong", {"what": "same"}, "two tasks have the id '1'"),
        ("test-wrong", {"what": "?"}, "failed after 1 tasks .*KeyError"),
    ],
)
def test_a_generator_that_fails_says_how(source, options, message):
    with pytest.raises((DataError, RegistryError), match=message):
        load_tasks([f"generator:{source}"], options=options)


def test_overlong_prompts_are_told_apart():
    tasks = [Task(str(n), "x" * n, n) for n in range(1, 6)]
    fitting, overlong = split_overlong(tasks, lambda task: len(task.prompt), 3)
    assert [t.answer for t in fitting] == [1, 2, 3]
    assert [t.answer for t in overlong] == [4, 5]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data beside this repository")
@pytest.mark.parametrize(
    ("name", "columns", "good", "bad"),
    [
        ("rl_math/dapo_math_17k.parquet", Columns(), 17_917, 0),
        ("math/train.parquet", Columns(answer="reward_model.ground_truth.target"), 7_496, 4),
        ("gsm8k/test.jsonl", QA, 1_319, 0),
        ("competition/aime24.jsonl", Columns(prompt="input", answer="output"), 30, 0),
        ("code/HumanEval.jsonl.gz", Columns(answer="test"), 164, 0),
    ],
)
def test_real_files(name, columns, good, bad):
    loaded = read_tasks(SHARED / name, columns)
    assert (len(loaded.tasks), len(loaded.bad)) == (good, bad)


def test_a_nested_column_may_be_stored_as_json_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"prompt": "2+2=", "reward_model": '{"style": "rule", "ground_truth": "4"}'}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (task,) = load_tasks([tmp_path / "a.parquet"]).strict()
    assert task.answer == "4"


def test_a_rows_tools_are_announced_with_it(tmp_path):
    tool = {"name": "add", "description": "Adds.", "parameters": {}}
    rows = [
        {"question": [{"role": "user", "content": "?"}], "answer": "1", "tools": [tool]},
        {"question": "?", "answer": "1", "tools": json.dumps([tool])},
        {"question": "?", "answer": "1"},
        {"question": "?", "answer": "1", "tools": [{"description": "nameless"}]},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    loaded = read_tasks(file, QA)
    announced = ({"type": "function", "function": tool},)
    assert [task.tools for task in loaded.tasks] == [announced, announced, ()]
    assert "tools[0] must be a function" in loaded.bad[0].reason
