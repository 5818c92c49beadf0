"""The console output of a run.

On a terminal: one live panel with progress, the most important metrics and their recent
course. Elsewhere (a file, a pipe, a batch job): one plain line per step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent_r1.types import Trajectory
from agent_r1.under_way import Part, SlowLines, to_stderr

Progress = Callable[[int], None]
"""Reports how many of a phase's items are done."""

_HISTORY = 48
_MESSAGES = 3
_RECENT_LINES = 7
_RECENT_TEXT = 400
_SECONDS_PER_LINE = 1.0
_LONGEST_PAUSE = 60.0
_MANY_STEPS = 100
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Headline:
    """A metric worth a row: the first of ``keys`` that exists is shown under ``label``."""

    label: str
    keys: tuple[str, ...]
    style: str
    form: str = "{:.3f}"
    short: bool = False
    """Also part of the plain line."""


HEADLINES = (
    Headline("success", ("rollout/success",), "green", "{:.1%}", short=True),
    Headline("reward", ("critic/rewards/mean",), "green", "{:+.3f}", short=True),
    Headline("calls a tool", ("rollout/tool_call_share",), "cyan", "{:.1%}", short=True),
    Headline("calls that work", ("tool/success",), "cyan", "{:.1%}"),
    Headline("response tokens", ("response_length/mean",), "blue", "{:.0f}", short=True),
    Headline("turns", ("num_turns/mean",), "blue", "{:.2f}"),
    Headline("entropy", ("actor/entropy",), "magenta", short=True),
    Headline("KL to reference", ("actor/kl_loss", "actor/reward_kl_penalty"), "magenta", "{:.2e}"),
    Headline("train loss", ("train/loss",), "green", "{:.4f}", short=True),
    Headline("validation loss", ("val/loss",), "yellow", "{:.4f}", short=True),
    Headline("tokens per second", ("perf/throughput",), "white", "{:,.0f}"),
    Headline("seconds per step", ("timing_s/step",), "white", "{:.1f}", short=True),
)


class Display(Protocol):
    """What the run folder tells a person. Never raises; ``announce`` may come from a signal."""

    def begin(self, title: str, where: str) -> None: ...

    def expect(self, total_steps: int) -> None: ...

    def announce(self, message: str) -> None: ...

    def progress(self, label: str, total: int) -> Progress: ...

    def phase(self, label: str) -> AbstractContextManager[None]: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def sample(self, trajectory: Trajectory) -> None: ...

    def end(self) -> None: ...


def make_display(names: Sequence[str]) -> Display:
    """The live panel or plain lines if ``names`` has ``console``, else announcements only."""
    if "console" not in names:
        return QuietDisplay()
    console = Console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


@dataclass(slots=True)
class QuietDisplay:
    """Announcements on standard error and nothing else."""

    def begin(self, title: str, where: str) -> None:
        pass

    def expect(self, total_steps: int) -> None:
        pass

    def announce(self, message: str) -> None:
        to_stderr(message)

    def progress(self, label: str, total: int) -> Progress:
        return lambda done: None

    def phase(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def sample(self, trajectory: Trajectory) -> None:
        pass

    def end(self) -> None:
        pass


@dataclass(slots=True)
class PlainDisplay:
    """One line of at most 120 columns per step, with about how much time is left.

    Steps of a run of more than 100, and those that take less than a second on average, share
    lines: at most one a second and one for each tenth of the run, at least one a minute, and
    one for each validation of a policy. A line leaves out its last metrics to fit. What is under
    way for long is told on standard error, see :class:`SlowLines`.
    """

    console: Console
    total_steps: int | None = None
    slow: SlowLines = field(default_factory=lambda: SlowLines(to_stderr))
    _seconds: float = 0.0
    _steps: int = 0
    _unshown_seconds: float = 0.0

    def begin(self, title: str, where: str) -> None:
        self._line(f"{title} → {where}")

    def expect(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def announce(self, message: str) -> None:
        to_stderr(message)

    def progress(self, label: str, total: int) -> Progress:
        def report(done: int) -> None:
            if done < total:
                self.slow.show(Part(label, done, total))
            else:
                self.slow.hide(label)

        report(0)
        return report

    @contextmanager
    def phase(self, label: str) -> Iterator[None]:
        self.slow.show(Part(label))
        try:
            yield
        finally:
            self.slow.hide(label)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.slow.clear()
        if self._is_skipped(metrics, step):
            return
        shown = [
            f"{row.label} {row.form.format(metrics[key])}"
            for row in HEADLINES
            if row.short and (key := _present(row, metrics))
        ]
        validated = [f"{_val_label(k)} {v:.3f}" for k, v in metrics.items() if k.startswith(_CORE)]
        of = f"/{self.total_steps}" if self.total_steps else ""
        last = []
        if self.total_steps and self._seconds and step < self.total_steps:
            left = self._seconds / self._steps * (self.total_steps - step)
            last = [f"about {_clock_time(left)} left"]
        self._line(_fitting(f"step {step}{of}", shown, validated, last))

    def sample(self, trajectory: Trajectory) -> None:
        pass  # a line a step, and trajectories are on disk

    def end(self) -> None:
        self.slow.clear()

    def _is_skipped(self, metrics: Mapping[str, float], step: int) -> bool:
        """Decided by the steps' own times, so that two runs of a machine read alike."""
        seconds = metrics.get("timing_s/step")
        if seconds is not None:
            self._seconds, self._steps = self._seconds + seconds, self._steps + 1
        self._unshown_seconds += _SECONDS_PER_LINE if seconds is None else seconds
        marked = step in (0, 1, self.total_steps) or any(k.startswith(_CORE) for k in metrics)
        if marked or self._unshown_seconds >= self._pause(step):
            self._unshown_seconds = 0.0
            return False
        return True

    def _pause(self, step: int) -> float:
        """Seconds without a line that are due to end at ``step``."""
        quick = self._steps > 0 and self._seconds / self._steps < _SECONDS_PER_LINE
        if not self.total_steps or not (quick or self.total_steps > _MANY_STEPS):
            return _SECONDS_PER_LINE
        tenth = step * 10 // self.total_steps != (step - 1) * 10 // self.total_steps
        return _SECONDS_PER_LINE if tenth else _LONGEST_PAUSE

    def _line(self, text: str) -> None:
        self.slow.spoke()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass(slots=True)
class LiveDisplay:
    """One panel, redrawn four times a second by a thread of rich."""

    console: Console
    title: str = ""
    where: str = ""
    step: int = 0
    total_steps: int | None = None
    _first_step: int | None = None
    _started: float = field(default_factory=time.monotonic)
    _phases: dict[str, Part] = field(default_factory=dict)
    _latest: dict[str, float] = field(default_factory=dict)
    _history: dict[str, deque[float]] = field(default_factory=dict)
    _messages: list[str] = field(default_factory=list)
    _recent: list[Text] = field(default_factory=list)
    _live: Live | None = None

    def begin(self, title: str, where: str) -> None:
        self.title, self.where = title, where
        self._started = time.monotonic()
        self._live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
        self._live.start()

    def expect(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def announce(self, message: str) -> None:
        self._messages.append(message)  # drawn by rich's thread: no output in signal handlers
        if self._live is None:
            to_stderr(message)

    def progress(self, label: str, total: int) -> Progress:
        def report(done: int) -> None:
            if done < total:
                self._phases[label] = Part(label, done, total)
            else:
                self._phases.pop(label, None)

        report(0)
        return report

    @contextmanager
    def phase(self, label: str) -> Iterator[None]:
        self._phases[label] = Part(label)
        try:
            yield
        finally:
            self._phases.pop(label, None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._first_step is None:
            self._first_step = step - 1 if step else 0
        self.step = step
        self._phases.clear()
        self._latest.update(metrics)
        for key, value in metrics.items():
            self._history.setdefault(key, deque(maxlen=_HISTORY)).append(value)

    def sample(self, trajectory: Trajectory) -> None:
        self._recent = recent_lines(trajectory)  # once, and not at each drawing

    def end(self) -> None:
        if self._live is None:
            return
        self._phases.clear()
        self._live.stop()
        self._live = None
        for message in self._messages[:-_MESSAGES]:
            self.console.print(Text(message, "dim"))

    def render(self) -> RenderableType:
        """The panel as it stands."""
        parts: list[RenderableType] = [self._progress_rows(), Text()]
        metrics = self._metric_rows()
        parts += [metrics, Text()] if metrics.row_count else []
        parts += [*self._recent, Text()] if self._recent else []
        parts += [Text(f"! {message}", "yellow") for message in self._messages[-_MESSAGES:]]
        parts.append(Text(self.where, "dim", overflow="fold"))
        return Panel(
            Group(*parts), title=Text(self.title, "bold"), border_style="blue", padding=(1, 2)
        )

    def _progress_rows(self) -> Table:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(min_width=18)
        rows.add_column(width=32)
        rows.add_column(no_wrap=True)
        if self.total_steps:
            bar = ProgressBar(self.total_steps, min(self.step, self.total_steps), width=32)
            rows.add_row(Text(f"step {self.step}/{self.total_steps}", "bold"), bar, self._clock())
        else:
            rows.add_row(Text(f"step {self.step}", "bold"), "", self._clock())
        for part in list(self._phases.values()):  # other threads change them
            bar = ProgressBar(part.total or None, part.done, width=32, complete_style="cyan")
            rows.add_row(Text(part.label, "cyan"), bar, Text(part.count(), "cyan"))
        return rows

    def _clock(self) -> Text:
        passed = time.monotonic() - self._started
        text = f"{_clock_time(passed)} passed"
        done = self.step - (self._first_step or 0)
        if self.total_steps and done > 0 and self.step < self.total_steps:
            left = passed / done * (self.total_steps - self.step)
            text += f", about {_clock_time(left)} left"
        return Text(text, "dim")

    def _metric_rows(self) -> Table:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(min_width=18)
        rows.add_column(justify="right", min_width=8)
        rows.add_column(no_wrap=True)
        for row in HEADLINES:
            key = _present(row, self._latest)
            if key:
                value = row.form.format(self._latest[key])
                course = Text(sparkline(self._history[key]), row.style)
                rows.add_row(row.label, Text(value, f"bold {row.style}"), course)
        for key in [k for k in self._latest if k.startswith(_CORE)]:
            course = Text(sparkline(self._history[key]), "yellow")
            value = f"{self._latest[key]:.3f}"
            rows.add_row(_val_label(key), Text(value, "bold yellow"), course)
        return rows


def recent_lines(trajectory: Trajectory) -> list[Text]:
    """How a trajectory ended, its question and its last lines, each cut to the panel's width."""
    reward = trajectory.reward
    scored = "not scored" if reward is None else f"reward {reward.value:+.3f}"
    lines = [
        Text(f"a recent trajectory: {scored}, {trajectory.outcome.value}", "bold"),
        Text(_one_line(question_of(trajectory.task.prompt)), "italic"),
    ]
    told: list[tuple[str, str]] = []
    for turn in trajectory.turns:
        for text, style in ((turn.text, ""), (turn.observation_text, "dim")):
            lines_of = text.splitlines()[-_RECENT_LINES:]
            told += [(line, style) for line in lines_of if line.strip()]
    lines += [Text(_one_line(line), style) for line, style in told[-_RECENT_LINES:]]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def question_of(prompt: str | Sequence[Mapping[str, object]]) -> str:
    """The last message that a task began with."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1].get("content") or "") if prompt else ""


def _one_line(text: str) -> str:
    """The beginning of a text without line ends and without what a terminal would obey."""
    words = " ".join(text[:_RECENT_TEXT].split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)


_CORE = "val-core/"
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """The course of a metric in block characters, scaled to its own range."""
    finite = [v for v in values if v == v and abs(v) != float("inf")]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    if high == low:
        return _BLOCKS[3] * len(finite)
    return "".join(_BLOCKS[round((v - low) / (high - low) * 7)] for v in finite)


def _fitting(step: str, shown: list[str], validated: list[str], last: list[str]) -> str:
    """One line: metrics leave from the right where all do not fit, validation's after others."""
    while True:
        line = "  ".join([step, *shown, *validated, *last])
        if len(line) <= _WIDTH or not (shown or validated):
            return line
        (shown or validated).pop()


def _present(row: Headline, metrics: Mapping[str, float]) -> str | None:
    return next((key for key in row.keys if key in metrics), None)


def _val_label(key: str) -> str:
    """``val-core/gsm8k/accuracy/mean@4`` → ``val gsm8k accuracy``."""
    *parts, kind = key.removeprefix(_CORE).split("/")
    return " ".join(["val", *parts] + ([] if kind == "mean@1" else [kind]))


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
