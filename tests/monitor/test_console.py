"""What a person sees, on a terminal and elsewhere."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from agent_r1.monitor.console import (
    LiveDisplay,
    PlainDisplay,
    QuietDisplay,
    make_display,
    sparkline,
)
from agent_r1.testing import make_trajectory
from agent_r1.types import Reward

METRICS = {
    "rollout/success": 0.5,
    "critic/rewards/mean": -0.25,
    "rollout/tool_call_share": 1.0,
    "response_length/mean": 41.6,
    "val-core/gsm8k/accuracy/mean@1": 0.75,
    "val-core/gsm8k/reward/mean@4": 0.5,
    "timing_s/step": 2.0,
    "unknown/metric": 3.0,
}


def shown(display):
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(display.render())
    return console.file.getvalue()


def test_the_panel_shows_progress_metrics_and_messages():
    display = LiveDisplay(Console(file=io.StringIO()), title="retool · first", where="runs/x")
    display.expect(60)
    display.log(METRICS, 30)
    display.announce("logger wandb failed")
    display.progress("rollout", 64)(41)
    text = shown(display)
    for words in (
        "retool · first",
        "step 30/60",
        "41/64",
        "left",
        "50.0%",
        "-0.250",
        "val gsm8k accuracy",
        "val gsm8k reward mean@4",
        "0.750",
        "! logger wandb failed",
        "runs/x",
    ):
        assert words in text
    assert "unknown/metric" not in text


def test_a_phase_disappears_when_it_is_done():
    display = LiveDisplay(Console(file=io.StringIO()))
    report = display.progress("validation", 2)
    assert "validation" in shown(display)
    report(2)
    assert "validation" not in shown(display)


def test_the_panel_shows_a_recent_trajectory_as_text():
    display = LiveDisplay(Console(file=io.StringIO()))
    hostile = "print(1)\x1b[31m\u202e\n" + "long " * 100
    base = make_trajectory([(hostile, "<output>1</output>"), "the answer is 1"])
    asked = replace(base.task, prompt=({"role": "user", "content": "How\nmany?"},))
    display.sample(replace(base, task=asked, reward=Reward(0.5)))
    text = shown(display)
    assert "a recent trajectory: reward +0.500, finished" in text and "How many?" in text
    for words in ("print(1)", "<output>1</output>", "the answer is 1", "…"):
        assert words in text
    assert "\x1b" not in text and "\u202e" not in text
    display.sample(replace(base, reward=None, turns=base.turns[:1] * 40))
    assert "not scored" in shown(display) and len(shown(display).splitlines()) < 20


def test_an_empty_panel_can_be_drawn():
    assert "step 0" in shown(LiveDisplay(Console(file=io.StringIO())))


def test_the_live_panel_begins_and_ends():
    file = io.StringIO()
    display = LiveDisplay(Console(file=file, force_terminal=True, width=100))
    display.begin("p · e", "runs/x")
    display.expect(2)
    display.log(METRICS, 2)
    for i in range(5):
        display.announce(f"message {i}")
    display.end()
    display.end()
    text = file.getvalue()
    assert "step 2/2" in text
    assert all(f"message {i}" in text for i in range(5))


def test_without_a_terminal_there_is_one_plain_line_per_step():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.begin("p · e", "runs/x")
    display.expect(60)
    display.log(METRICS, 1)
    display.log({"train/loss": 0.5, "odd": 1.0}, 2)
    display.end()
    assert file.getvalue().splitlines() == [
        "p · e → runs/x",
        "step 1/60  success 50.0%  reward -0.250  val gsm8k accuracy 0.750  "
        "val gsm8k reward mean@4 0.500  about 1:58 left",  # 59 steps of 2 seconds
        "step 2/60  train loss 0.5000  about 1:56 left",
    ]


def test_of_quick_steps_there_is_about_one_line_a_second():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.expect(9)
    for step in range(1, 10):
        extra = {"val/loss": 0.5} if step == 4 else {}
        display.log({"timing_s/step": 0.4} | extra, step)
    shown = [line.split("/")[0] for line in file.getvalue().splitlines()]
    assert shown == ["step 1", "step 4", "step 7", "step 9"]


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(0.4, [1, *range(20, 201, 20)]), (1.5, [1, *range(20, 201, 20)]), (0.004, [1, 200])],
)
def test_of_quick_steps_there_is_a_line_for_each_tenth_of_the_run(seconds, steps):
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.expect(200)
    for step in range(1, 201):
        display.log({"timing_s/step": seconds, "val/loss": 0.5}, step)
    shown = [line.split("/")[0] for line in file.getvalue().splitlines()]
    assert shown == [f"step {step}" for step in steps]


def test_a_long_line_leaves_out_its_last_metrics():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    names = [f"val-core/a data set of many words {i}/accuracy/mean@1" for i in range(5)]
    display.log(METRICS | dict.fromkeys(names, 0.5), 1)
    (line,) = file.getvalue().splitlines()
    assert len(line) <= 120 and "val gsm8k accuracy 0.750" in line and "words 4" not in line


def test_a_line_keeps_all_that_fits_in_120_columns():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    few = {name: value for name, value in METRICS.items() if not name.startswith("val-core/")}
    display.log(few | {"actor/entropy": 0.5}, 1)
    assert file.getvalue() == (
        "step 1  success 50.0%  reward -0.250  calls a tool 100.0%  response tokens 42  "
        "entropy 0.500  seconds per step 2.0\n"
    )


def test_of_a_run_of_a_few_slow_steps_each_has_a_line():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.expect(40)
    for step in range(1, 41):
        display.log({"timing_s/step": 1.5}, step)
    assert len(file.getvalue().splitlines()) == 40


def test_of_a_long_run_of_quick_steps_there_is_a_line_a_minute():
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.expect(100_000)
    for step in range(1, 1000):
        display.log({"timing_s/step": 0.5}, step)
    shown = [line.split("/")[0] for line in file.getvalue().splitlines()]
    assert shown == [f"step {step}" for step in (1, *range(121, 1000, 120))]


def test_messages_go_to_standard_error(capfd):
    for display in (PlainDisplay(Console(file=io.StringIO())), QuietDisplay()):
        display.announce("stopping")
    assert capfd.readouterr().err == "stopping\nstopping\n"


def test_the_quiet_display_says_nothing_else(capfd):
    display = make_display([])
    display.begin("a", "b")
    display.expect(1)
    display.progress("x", 1)(1)
    display.log(METRICS, 1)
    display.end()
    assert isinstance(display, QuietDisplay)
    assert capfd.readouterr() == ("", "")


def test_the_console_is_plain_where_there_is_no_terminal():
    assert isinstance(make_display(["console"]), PlainDisplay)


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ([0, 7], "▁█"),
        ([3, 3, 3], "▄▄▄"),
        ([0, math.nan, 1, math.inf], "▁█"),
        ([], ""),
        ([math.nan], ""),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_course_in_blocks(values, blocks):
    assert sparkline(values) == blocks
