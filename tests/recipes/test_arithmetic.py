import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest

from agent_r1.data.traces import Author
from agent_r1.recipes import arithmetic
from agent_r1.testing import FakeExecutor
from agent_r1.tool.envs.retool import ReToolEnv
from agent_r1.tool.tools.python import PythonTool
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn


def first(stream, count):
    return list(itertools.islice(stream, count))


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    once, again = (first(arithmetic.problems("train", 3), 60) for _ in range(2))
    assert once == again
    assert once != first(arithmetic.problems("train", 4), 60)


def test_no_held_out_question_is_ever_trained_on():
    held_out = {p.question for p in first(arithmetic.problems("val", 0), 3000)}
    trained = {
        p.question for seed in (0, 1) for p in first(arithmetic.problems("train", seed), 3000)
    }
    shown = {t.prompt[-1]["content"] for t in first(arithmetic.traces(0), 3000)}
    assert not held_out & (trained | shown)


def test_families_take_turns():
    counts = Counter(p.family for p in first(arithmetic.problems("train", 0), 600))
    assert set(counts.values()) == {100}
    assert len(counts) == 6


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of"):
        next(arithmetic.problems("dev", 0))


def test_a_guess_has_hardly_a_chance():
    """No answer of any family may be likely enough to be guessed."""
    for family in arithmetic.FAMILIES:
        rng = __import__("random").Random(0)
        answers = Counter(family(rng).answer for _ in range(20_000))
        assert answers.most_common(1)[0][1] / 20_000 < 0.005


def run_all(programs):
    """What each program prints, by one interpreter for all of them."""
    driver = (
        "import contextlib, io, json, sys\n"
        "def run(code):\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out): exec(code, {})\n"
        "    return out.getvalue().rstrip('\\n')\n"
        "print(json.dumps([run(code) for code in json.load(sys.stdin)]))\n"
    )
    import json

    done = subprocess.run(
        [sys.executable, "-c", driver], input=json.dumps(programs), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_output_in_a_trace_is_what_python_prints_and_the_environment_says():
    called = [t for t in first(arithmetic.traces(5), 400) if len(t.segments) == 3]
    env = ReToolEnv([PythonTool(FakeExecutor({}))])
    programs = [env.extract_tool_calls(t.segments[0].text)[0] for t in called]
    for trace, printed in zip(called, run_all(programs), strict=True):
        assert trace.segments[1].text == env.format_tool_response([printed])


def test_traces_follow_the_mixture_and_only_good_ones_are_right():
    kinds = Counter()
    problems = arithmetic.problems("train", 2)
    for trace, problem in zip(first(arithmetic.traces(2), 2000), problems, strict=False):
        kind = trace.source.removeprefix("arithmetic/")
        kinds[kind] += 1
        answer = re.fullmatch(r"Answer: (\w+)", trace.segments[-1].text)[1]
        assert (answer == str(problem.answer)) is (kind == "good"), trace
        assert trace.segments[-1].author is Author.MODEL
    shares = {kind: count / 2000 for kind, count in kinds.items()}
    assert shares == pytest.approx(dict(arithmetic.MIXTURE), abs=0.04)


def trajectory(*texts, answer=42):
    turns = tuple(Turn((1,), Completion((2,), (0.0,), Finish.EOS), text) for text in texts)
    return Trajectory(Task("t", "q", answer), "g", 0, turns, Outcome.FINISHED)


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["Answer: 42"], 1.0),
        (["<code>\nprint(42)\n</code>", "Answer: 42"], 1.0),
        (["Answer: 42\n"], 1.0),
        (["Answer: 43"], 0.0),
        (["Answer: 42", "<code>\n1\n</code>"], 0.0),  # the last turn counts
        (["Answer: 42 or 43"], 0.0),
        (["Answer: 4242"], 0.0),
        (["Answer: 0x2a"], 0.0),
        (["Answer: 42.0"], 0.0),
        (["Answer: ٤٢"], 0.0),
        (["Answer: 41 Answer: 42"], 1.0),
        (["Answer: "], 0.0),
        (["42"], 0.0),
        ([""], 0.0),
        ([], 0.0),
    ],
)
def test_the_reward_wants_exactly_the_right_number_at_the_end(texts, value):
    reward = arithmetic.arithmetic_reward(trajectory(*texts))
    assert reward.value == value
    assert reward.parts["accuracy"] == value


def test_a_huge_number_is_graded_quickly():
    assert arithmetic.arithmetic_reward(trajectory("Answer: " + "9" * 100_000)).value == 0.0


def test_tasks_carry_the_answer_but_do_not_show_it():
    for task in first(arithmetic.tasks("val", 1), 30):
        assert str(task.answer) not in task.prompt[0]["content"]
        assert isinstance(task.answer, int)
