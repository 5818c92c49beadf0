"""Annotations become traces whose observations a real sandbox printed."""

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from agent_r1.config.schema import Config
from agent_r1.data.cold_start import gsm8k, mathcoder
from agent_r1.data.cold_start.play import Draft, Rejected, play
from agent_r1.data.sources_files import Row, read_rows
from agent_r1.data.traces import Author
from agent_r1.trainer.environments import open_tool_environment

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")


@pytest.fixture(scope="module")
def env():
    config = Config()
    with open_tool_environment(config.tool, config.sandbox) as made:
        yield made


def played(drafts, env):
    return asyncio.run(play(drafts, env, lambda question: question))


def gsm8k_row(question, answer, number=1):
    return Row(number, {"question": question, "answer": answer})


def test_later_steps_use_the_names_of_earlier_results():
    question = "A shop has 48 boxes and sells half of them twice a day at $3."
    steps = (
        "It sells 48/2 = <<48/2=24>>24 boxes.\n"
        "Both times it sells 24*2 = <<24*2=48>>48 boxes for 48*3 = $<<48*3=144>>144."
    )
    assert gsm8k.program(question, steps) == (
        "# It sells x1 boxes.\n"
        "x1 = 48/2\n"
        "# Both times it sells x2 boxes for x3.\n"
        "x2 = x1*2\n"
        "x3 = 48*3\n"  # the question states 48 itself
        "print(x3)"
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            "Trivially <<5=5>>5, then 5+2=<<5+2=7>>7.",
            "# Trivially 5, then x1.\nx1 = 5+2\nprint(x1)",
        ),
        ("A third is .5*.5=<<.5*.5=.25>>.25.", "# A third is x1.\nx1 = .5*.5\nprint(x1)"),
        ("Now <<1,000*02=2000>>2,000 left", "# Now x1 left\nx1 = 1000*2\nprint(x1)"),
        (
            "All are <<60+40=100>>100.\nThe share is <<60/100*100=60>>60%.",
            "# All are x1.\nx1 = 60+40\n# The share is x2%.\nx2 = 60/100*100\nprint(x2)",
        ),
    ],
)
def test_annotations_of_many_kinds(steps, expected):
    assert gsm8k.program("Nothing is stated.", steps) == expected


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("There are two.\n#### 2", "there is no annotation"),
        ("It is <<1+1=2>>2.", "no number after ####"),
        ("It is <<f(2)=2>>2.\n#### 2", "an annotation is no arithmetic"),
    ],
)
def test_a_row_that_makes_no_program_is_named_with_its_reason(answer, reason):
    [rejected] = gsm8k.drafts([gsm8k_row("How many?", answer, number=9)])
    assert isinstance(rejected, Rejected)
    assert (rejected.number, rejected.reason) == (9, reason)


def test_the_sandbox_writes_the_observations(env):
    rows = [gsm8k_row("One and 2?", "It is <<1+2=3>>3.\n#### 3")]
    [trace] = played(gsm8k.drafts(rows), env).traces
    assert [part.author for part in trace.segments] == [Author.MODEL, Author.TOOL, Author.MODEL]
    assert trace.segments[1].text == "\n<interpreter>\n3\n</interpreter>\n"
    assert trace.segments[2].text == "The answer is \\boxed{3}."


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (("<code>\nprint(4)\n</code>", "\\boxed{3}"), "the answer is not the reference"),
        (("<code>\n1/0\n</code>", "\\boxed{4}"), "the last call fails"),
        (("no code", "\\boxed{4}"), "a turn calls no tool"),
        (("<code>\nprint(4)\n</code>",), "the last turn calls a tool"),
    ],
)
def test_only_what_the_environment_bears_out_is_kept(env, turns, reason):
    result = played([Draft(3, "What is 2 + 2?", "4", turns, "test")], env)
    assert not result.traces
    assert [(each.number, each.reason) for each in result.rejected] == [(3, reason)]


def mathcoder_row(*blocks, answer="12"):
    content = [{"role": role, "content": text} for role, text in blocks]
    return Row(1, {"debug_result": content, "ground_truth": {"answer": answer}})


def test_notebook_cells_become_programs_of_their_own(env):
    row = mathcoder_row(
        ("user", "What is 3 times 4?"),
        ("text", "First the factor."),
        ("code", "import math\nfactor = 3\nfactor"),
        ("execution", "3"),
        ("code", "print('working')\nmath.prod([factor,\n  4])"),
        ("execution", "12"),
        ("text", "So it is 12."),
        ("text", "12"),
    )
    [trace] = played(mathcoder.drafts([row]), env).traces
    assert [part.text for part in trace.segments] == [
        "First the factor.\n<code>\nimport math\nfactor = 3\nprint(factor)\n</code>",
        "\n<interpreter>\n3\n</interpreter>\n",
        "<code>\nimport math\nfactor = 3\nprint('working')\nprint(math.prod([factor, 4]))\n</code>",
        "\n<interpreter>\nworking\n12\n</interpreter>\n",
        "So it is 12.\n\nThe answer is \\boxed{12}.",
    ]


def test_a_recovery_from_an_error_is_kept_and_the_broken_cell_is_not_repeated(env):
    row = mathcoder_row(
        ("user", "What is 3 times 4?"),
        ("code", "value = 3 * four\nvalue"),
        ("execution", "NameError: name 'four' is not defined"),
        ("code", "value = 3 * 4\nvalue"),
        ("execution", "12"),
        ("text", "\\boxed{12}"),
    )
    result = played(mathcoder.drafts([row]), env)
    [trace] = result.traces
    assert (result.calls, result.failed_calls) == (2, 1)
    assert "NameError" in trace.segments[1].text
    assert trace.segments[2].text == "<code>\nvalue = 3 * 4\nprint(value)\n</code>"


@needs_data
def test_gsm8k_gives_about_seven_thousand_clean_traces(env):
    drafts = list(gsm8k.drafts(read_rows(DATA / "gsm8k" / "train.jsonl")))
    made = [draft for draft in drafts if isinstance(draft, Draft)]
    assert (len(drafts), len(made)) == (7473, 7289)
    sample = made[::20]
    result = played(sample, env)
    assert len(result.traces) > 0.96 * len(sample)
    assert set(result.reasons()) <= {"the answer is not the reference", "the last call fails"}


@needs_data
def test_mathcoder_rows_are_all_accounted_for(env):
    path = DATA / "coldstart" / "mathcoder_L70b_svamp_correct.jsonl"
    drafts = list(mathcoder.drafts(read_rows(path)))
    reasons = Counter(each.reason for each in drafts if isinstance(each, Rejected))
    assert (len(drafts), dict(reasons)) == (850, {"no code block": 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    recovering = [
        draft
        for draft, line in zip(drafts, lines, strict=True)
        if any("Error" in b["content"] for b in line["debug_result"] if b["role"] == "execution")
    ]
    result = played(drafts[:60] + recovering, env)
    assert len(result.traces) >= 0.97 * len(result.traces + result.rejected)
