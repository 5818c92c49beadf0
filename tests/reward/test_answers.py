"""What counts as an answer, and when two are the same."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.reward.answers import (
    as_number,
    final_answer,
    math_equal,
    numeric_equal,
    same_text,
)
from agent_r1.reward.limits import TimeLimit, time_limit

# An alarm may ring while hypothesis measures a garbage collection. There it is swallowed, with
# a warning, and rings again a second later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", None),
        ("The answer is 42.", None),
        (r"It is \boxed{42}.", "42"),
        (r"\boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{7} and \boxed{8", None),
        ("<answer>7</answer> or <answer>8", None),
        (r"\boxed{7} and {8", "7"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed{1 and \boxed{2}", "2"),
        (r"} \boxed{7} }", "7"),
        (r"\boxed{\text{a\}}}", r"\text{a\}}"),
        (r"\boxed{}", None),
        (r"\boxed{3}, then \boxed{ }", None),
        ("<answer> 42 </answer>", "42"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        (r"<answer>\boxed{5}</answer>", "5"),
        (r"<think>\boxed{1}</think> It is \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> It is 2", None),
        (r"\boxed{1} written in the template's thinking</think> so", None),
        (r"<think> surely \boxed{1}", None),
        (r"<code>print('\boxed{1}')</code>", None),
        (r"\boxed{2} <code># \boxed{1}", "2"),
    ],
)
def test_the_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


def test_a_repeated_instruction_is_no_answer_once_there_is_one():
    echo = r"Put the answer into \boxed{answer}. <answer>\boxed{The final answer}</answer>"
    assert final_answer(rf"{echo} So: \boxed{{12}}") == "12"


@given(st.text(max_size=200))
def test_any_text_gives_an_answer_or_none(text):
    assert final_answer(text) is None or final_answer(text).strip()
    assert final_answer(rf"{text}</think>\boxed{{7}}") == "7"


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "<answer>", "<code>", "<think>", "$", r"\[", "}", "1 "]
)
def test_nothing_that_a_model_repeats_takes_more_than_linear_time(piece):
    """Quadratic would be 10^10 steps here, hours of them."""
    hostile = piece * (200_000 // len(piece))
    started = time.process_time()
    final_answer(hostile)
    final_answer(rf"{hostile}\boxed{{{hostile}")
    same_text(hostile, "1")
    numeric_equal(hostile, "1")
    math_equal(hostile, "1")
    assert time.process_time() - started < 30


SAME = [
    ("1/2", r"\frac12"),
    ("0.5", r"\frac{1}{2}"),
    (r"\dfrac{1}{2}", "0.5"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("1,234", "1234"),
    ("5.00", "5"),
    ("1e3", "1000"),
    ("$5", "5"),
    (r"\$5", "5"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    (r"5 \text{ cm}", "5"),
    (r"5 \, \mathrm{cm}^2", "5"),
    ("18 dollars", "18"),
    ("$18 per day", "18"),
    ("1.5 hours", "1.5"),
    (r"90^\circ", "90"),
    (r"\text{(B)}", "B"),
    ("a", "A"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"(-\infty, 3)", r"(-\infty,3)"),
    (r"[2,3]\cup[5,6]", r"[5,6]\cup[2,3]"),
    (r"x \in (1,2)", "(1,2)"),
    ("x=3", "3"),
    ("(1,2)", "1<x<2"),
    ("1<x<2", "(1,2)"),
    ("1 234 567", "1234567"),
    ("3", "x=3"),
    ("x>3", "3<x"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"\binom{5}{2}", "10"),
    ("2^{10}", "1024"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
    ),
    ("9" * 900, "9" * 900),
]
DIFFERENT = [
    ("2", "3"),
    ("-5", "5"),
    ("(1,2)", "(2,1)"),
    ("1<x<=2", "(1,2)"),
    ("1 1/2", "11/2"),
    (r"1\frac{1}{2}", "11/2"),
    ("1 2", "12"),
    ("(1, 2]", "[1,2]"),
    ("0.333", "1/3"),
    ("3.14159", r"\pi"),
    ("2 million", "2"),
    ("three", "3"),
    ("3 or 4", "4"),
    ("3 or 4", "3"),
    ("9" * 900, "9" * 899 + "8"),
    ("9" * 5000, "1"),
    ("1/0", "0"),
    ("nan", "0"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_the_same_object(answer, reference):
    assert math_equal(answer, reference)


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_different_objects(answer, reference):
    assert not math_equal(answer, reference)


@pytest.mark.parametrize("answer", ["10^{10^{10}}", "(9^9)^{9^9}", "1000000!!", "9" * 100_000])
def test_what_would_run_away_is_not_even_tried(answer):
    """Any of them would use up the whole limit, here more than a week."""
    assert not math_equal(answer, "7", seconds=1e6)
    assert math_equal(answer, answer, seconds=1e6)


@pytest.mark.parametrize("answer", ["(" * 400 + "1" + ")" * 400, "(x+y+z+w)^{30}(x-y)^{40}"])
def test_a_parse_without_end_is_interrupted(answer):
    """Without an end to it the test would run into its own limit."""
    assert not math_equal(answer, "7", seconds=0.3)


def test_a_limit_never_interrupts_the_import_of_the_verifier():
    program = (
        "from agent_r1.reward.answers import math_equal\n"
        "print(math_equal('x+1', 'y', seconds=0.3))\n"
        "print(math_equal('x+1', '1+x', seconds=100))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=250
    )
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")


@given(st.integers(-(10**12), 10**12))
def test_a_number_equals_itself_however_it_is_written(number):
    assert as_number(f"{number:,}") == number
    assert numeric_equal(f"{number}.0", str(number))
    assert not numeric_equal(str(number + 1), str(number))


def test_tolerance_is_relative():
    assert numeric_equal("100.4", "100", tolerance=0.005)
    assert not numeric_equal("100.6", "100", tolerance=0.005)
    assert not numeric_equal("100.0000001", "100")


def test_text_is_compared_without_case_and_spaces_but_latex_is_not():
    assert same_text(r"$ Blue \ Whale. $", "bluewhale")
    assert not same_text(r"\Pi", r"\pi")


def test_nested_limits_both_hold():
    def spin(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    before, _ = signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(TimeLimit, match=r"0\.05 s"), time_limit(0.05), time_limit(1000):
        spin(60)
    with pytest.raises(TimeLimit, match=r"0\.05 s"), time_limit(1000), time_limit(0.05):
        spin(60)
    with pytest.raises(TimeLimit, match=r"0\.2 s"), time_limit(0.2):
        with time_limit(0.1), contextlib.suppress(TimeLimit):
            spin(60)
        spin(60)
    after, _ = signal.getitimer(signal.ITIMER_REAL)
    assert before - 100 < after <= before  # another's alarm, pytest-timeout's here, goes on


@pytest.mark.parametrize("cpu", [False, True])
def test_a_limit_that_is_swallowed_strikes_again(cpu):
    """A bare ``except`` in somebody's parser must not make the limit void."""
    with pytest.raises(TimeLimit), time_limit(0.05, cpu=cpu):
        with contextlib.suppress(BaseException):
            while True:
                pass
        while True:
            pass


def test_time_spent_waiting_is_not_computing():
    with time_limit(0.05, cpu=True):
        time.sleep(0.2)


def test_no_limit_in_other_threads():
    def work():
        with time_limit(0.001):
            time.sleep(0.01)
        finished.append(True)

    finished = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert finished == [True]
