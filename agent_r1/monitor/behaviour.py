"""How the use of tools changes in the course of a run, from its stored trajectories.

The figures are those that ReTool reports (Feng et al. 2025, arXiv:2504.11536, section 3.3 and
figure 4): length of the response, share of responses with code, lines of code, programs that
ran, share of programs that ran among right and wrong responses, place of the first program;
beside them the share of right responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from agent_r1.errors import DataError
from agent_r1.monitor.compare import draw_panels
from agent_r1.monitor.metrics import succeeded
from agent_r1.monitor.records import read_stored
from agent_r1.tool.text import between
from agent_r1.types import Trajectory

PANELS = {
    "success": "Right responses",
    "length": "Tokens of a response",
    "share": "Responses that call a tool",
    "lines": "Lines of a program",
    "successes": "Calls that succeed, per response",
    "pass_right": "Calls that succeed, in right responses",
    "pass_wrong": "Calls that succeed, in wrong responses",
    "place": "First call, as a share of the response",
}
SHARES = frozenset({"success", "share", "pass_right", "pass_wrong", "place"})
_CODE = ("<code>", "</code>")


def plot_behaviour(runs: Sequence[Path], target: Path) -> list[str]:
    """Draw one panel for each figure that the runs' training trajectories have.

    Runs that differ in seeds and names alone share a line and a band, as those of
    :func:`agent_r1.monitor.compare.plot_metrics`. Returns the titles of the panels.

    Raises:
        DataError: a run without trajectories of training, or a target that cannot be written.
    """
    lines = {run: behaviour(run) for run in runs}
    found = {name for rows in lines.values() for row in rows for name in row}
    titles = {name: title for name, title in PANELS.items() if name in found}
    draw_panels(runs, lines, titles, target, SHARES)
    return list(titles.values())


def behaviour(run: Path) -> list[dict[str, float]]:
    """One line for each step of training: ``step`` and those of :data:`PANELS` that it has."""
    by_step: dict[int, list[Trajectory]] = {}
    for stored in read_stored(run):
        if stored.split == "train":
            by_step.setdefault(stored.step, []).append(stored.trajectory)
    if not by_step:
        raise DataError(f"{run} has no trajectories of training")
    return [{"step": float(step)} | _line(by_step[step]) for step in sorted(by_step)]


def _line(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    calling = [t for t in trajectories if t.tool_calls]
    right = [t for t in calling if succeeded(t)]
    wrong = [t for t in calling if t.reward is not None and not succeeded(t)]
    values = {
        "success": (succeeded(t) for t in trajectories if t.reward is not None),
        "length": (t.response_length for t in trajectories),
        "share": (bool(t.tool_calls) for t in trajectories),
        "lines": (lines for t in trajectories for lines in _lines(t)),
        "successes": (sum(call.success for call in t.tool_calls) for t in trajectories),
        "pass_right": _passes(right),
        "pass_wrong": _passes(wrong),
        "place": map(_place, calling),
    }
    listed = {name: [float(value) for value in found] for name, found in values.items()}
    return {name: fmean(found) for name, found in listed.items() if found}


def _lines(trajectory: Trajectory) -> Iterable[int]:
    """Of each program that was written between the tags of ReTool; empty lines do not count."""
    for turn in trajectory.turns:
        for program in between(turn.text, *_CODE):
            yield sum(bool(line.strip()) for line in program.splitlines())


def _passes(trajectories: Sequence[Trajectory]) -> Iterable[bool]:
    return (call.success for t in trajectories for call in t.tool_calls)


def _place(trajectory: Trajectory) -> float:
    """Tokens of the model before the end of the first turn with a call, over all of its tokens."""
    lengths = [turn.completion.length for turn in trajectory.turns]
    first = next(i for i, turn in enumerate(trajectory.turns) if turn.tool_calls)
    return sum(lengths[: first + 1]) / max(sum(lengths), 1)
