"""What takes long is told: lines where nobody watches, bars on a terminal. Nothing is timed here:
a slow phase is one that waits until it has been told."""

import io
import os
import threading
from itertools import pairwise

import pytest
from rich.console import Console

from agent_r1 import under_way
from agent_r1.config import Config
from agent_r1.monitor import RunFolder
from agent_r1.monitor.console import LiveDisplay, PlainDisplay
from agent_r1.under_way import Part, SlowLines

LONG = 30.0


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.delenv(under_way.VARIABLE, raising=False)


class Told:
    """Takes lines, and lets a phase wait for the next one."""

    def __init__(self):
        self.lines = []
        self._came = threading.Semaphore(0)

    def __call__(self, line):
        self.lines.append(line)
        self._came.release()

    def wait(self):
        assert self._came.acquire(timeout=LONG)


def parts_of(line):
    return line.removeprefix("under way: ").rpartition(" (")[0]


def test_a_slow_phase_is_told_with_its_count_and_a_quick_one_is_not():
    told = Told()
    lines = SlowLines(told, first_s=0.001)
    lines.show(Part("loading the model"))
    told.wait()
    lines.show(Part("rollout", 3, 8))
    told.wait()
    lines.hide("loading the model")
    told.wait()
    lines.clear()
    assert [parts_of(line) for line in told.lines[:1]] == ["loading the model"]
    assert parts_of(told.lines[1]) in ("loading the model", "loading the model, rollout 3/8")
    assert told.lines[0].endswith(" s)")

    quick = Told()
    lines = SlowLines(quick, first_s=LONG)
    for _ in range(100):
        lines.show(Part("update"))
        lines.hide("update")
    assert quick.lines == []


def test_lines_become_rarer_and_never_a_flood(monkeypatch):
    """By a clock that jumps to the end of every wait: what ten hours of short phases tell."""
    now, told = [0.0], []
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    lines = SlowLines(lambda line: told.append(now[0]))

    def wait(seconds):
        now[0] += seconds
        if now[0] > 36_000:
            lines.clear()

    monkeypatch.setattr(lines._changed, "wait", wait)
    lines.show(Part("rollout"))
    lines._thread and lines._thread.join(LONG)
    assert told[:6] == [2, 6, 14, 30, 62, 122]  # silences of 2, 4, 8, 16, 32, 60 seconds
    assert {b - a for a, b in pairwise(told[5:])} == {60}


def test_other_lines_count_as_well(monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    lines = SlowLines(lambda line: told.append(now[0]))

    def wait(seconds):
        now[0] += min(seconds, 1.0)
        if now[0] <= 20:
            lines.spoke()  # a step's line every second
        if now[0] > 23:
            lines.clear()

    monkeypatch.setattr(lines._changed, "wait", wait)
    lines.show(Part("rollout"))
    lines._thread and lines._thread.join(LONG)
    assert told == [22]


def test_a_reader_that_has_gone_stops_nothing():
    tried = threading.Event()

    def broken(line):
        tried.set()
        raise BrokenPipeError

    lines = SlowLines(broken, first_s=0.001)
    lines.show(Part("update"))
    assert tried.wait(LONG)
    lines.show(Part("update", 1, 2))
    lines.clear()


def test_a_run_without_a_terminal_tells_its_slow_phases(tmp_path):
    told = Told()
    display = PlainDisplay(Console(file=io.StringIO()), slow=SlowLines(told, first_s=0.001))
    with RunFolder(tmp_path / "run", Config(), display=display) as run:
        with run.phase("saving a checkpoint"):
            told.wait()
        report = run.progress("validation", 2)
        told.wait()
        report(2)
        seen = [parts_of(line) for line in told.lines]
        assert seen[0] == "saving a checkpoint" and "validation 0/2" in seen
        run.progress("rollout", 5)
        run.log({"train/loss": 1.0}, step=1)
    assert display.slow._parts == {}


def test_the_panel_shows_phases_beside_each_other_until_they_end():
    display = LiveDisplay(Console(file=io.StringIO()))

    def text():
        console = Console(file=io.StringIO(), width=110, force_terminal=False)
        console.print(display.render())
        return console.file.getvalue()

    display.progress("rollout", 8)(3)
    with pytest.raises(RuntimeError), display.phase("update"):
        assert "rollout" in text() and "3/8" in text() and "update" in text()
        raise RuntimeError
    assert "rollout" in text() and "update" not in text()


def test_a_command_shows_a_bar_on_a_terminal_that_is_gone_at_its_end():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with under_way.rows(console=console) as shown:
        shown.show(Part("sampling", 0, 8))
        shown.show(Part("sampling", 3, 8))
        shown.show(Part("gsm8k", 2_000_000, 4_000_000, of_bytes=True))
        shown.hide("sampling")
        shown.hide("sampling")
    text = file.getvalue()
    assert "gsm8k" in text and "2.0 MB/4.0 MB" in text
    assert text.rstrip("\n").endswith("\x1b[2K") or text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_a_command_in_a_pipe_tells_lines_on_standard_error(monkeypatch, capfd):
    came = threading.Event()
    write = os.write
    monkeypatch.setattr(under_way, "FIRST_S", 0.001)

    def seen(descriptor, data):
        written = write(descriptor, data)
        came.set()
        return written

    monkeypatch.setattr(under_way.os, "write", seen)
    with under_way.under_way("writing model") as progress:
        progress(3)
        assert came.wait(LONG)
    out, err = capfd.readouterr()
    assert out == "" and parts_of(err.splitlines()[0]) in ("writing model", "writing model 3")


def test_a_program_that_reads_the_lines_can_do_without(monkeypatch):
    monkeypatch.setenv(under_way.VARIABLE, "0")
    lines = SlowLines(Told(), first_s=0.0)
    lines.show(Part("writing model"))
    assert lines._thread is None  # nobody who could tell


def test_a_command_that_is_told_to_be_silent_is():
    with under_way.under_way("reading the data", shown=False) as progress:
        progress(1)
