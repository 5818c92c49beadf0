"""What the quick start shows in the terminal, besides the live view of each stage."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agent_r1.config.schema import Config
from agent_r1.recipes.arithmetic import problems
from agent_r1.recipes.quickstart import Example, Folders, Policy, Report, final_policy
from agent_r1.types import Trajectory

_WIDTH = 120
_BESIDE_WIDTH = 106
"""Narrower terminals get one table below the other."""


def _console() -> Console:
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH)
    return console


def show_title(config: Config) -> None:
    """What is about to happen, in three lines."""
    console = _console()
    estimator, seed = config.algorithm.adv_estimator, config.trainer.seed
    console.print(Rule(Text("Agent-R1 quick start", "bold")))
    console.print(
        "A tiny language model with random weights learns to answer arithmetic with a Python "
        "tool that runs in a sandbox. It cannot solve the problems without the tool.\n"
        f"[dim]{estimator} · seed {seed} · {os.cpu_count()} CPU cores[/]\n"
    )


def show_model(folder: Path, seconds: float) -> None:
    """The first stage has no live view: it is over at once."""
    shape = json.loads((folder / "config.json").read_text())
    show_stage(
        1,
        "Model",
        f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}, "
        f"{shape['vocab_size']} tokens, random weights ({seconds:.1f} s)",
    )


def show_stage(number: int, title: str, what: str) -> None:
    _console().print(f"[bold blue]{number}/3 {title}[/] [dim]· {what}[/]")


def show_report(report: Report, example: Example | None, folders: Folders) -> None:
    """Before and after, one problem in both states, where things are, and what to try."""
    console = _console()
    console.print()
    console.print(Rule(Text("What reinforcement learning did", "bold")))
    tables = _headline(report), _by_family(report)
    if console.width >= _BESIDE_WIDTH:
        console.print(_beside(*tables, padding=5))
    else:
        console.print(Group(tables[0], Text(), tables[1]))
    if example is not None:
        console.print(_side_by_side(example))
    console.print(_seconds(report))
    _show_files(console, report, folders)
    _show_next_steps(console, _question(report, example), report, folders)


def _headline(report: Report) -> RenderableType:
    before, after = report.before, report.after
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(f"{before.problems} held-out problems", style="dim")
    table.add_column("cold start", justify="right")
    table.add_column(f"after {report.rl_steps} steps", justify="right", style="bold")
    table.add_row(
        Text("solved", "bold green"),
        Text(_percent(before.success), "green"),
        Text(_percent(after.success), "bold green"),
    )
    table.add_row("solved without the tool", _percent(before.direct), _percent(after.direct))
    table.add_row(
        "calls the tool", _percent(before.tool_call_share), _percent(after.tool_call_share)
    )
    table.add_row("calls that run", _calls(before), _calls(after))
    table.add_row("tokens written", f"{before.response_tokens:.0f}", f"{after.response_tokens:.0f}")
    return table


def _by_family(report: Report) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("kind of problem", style="dim")
    table.add_column("", justify="right")
    table.add_column("", min_width=20)
    for family, before in report.before.families.items():
        after = report.after.families.get(family, 0.0)
        table.add_row(family, f"{_percent(before)} → {_percent(after)}", _bar(before, after))
    return table


def _bar(before: float, after: float, width: int = 20) -> Text:
    """What was there, what was gained, what is missing."""
    old, new = round(min(before, after) * width), round(after * width)
    return (
        Text("█" * old, "green")
        + Text("█" * (new - old), "bright_green")
        + Text("░" * (width - new), "dim")
    )


def _side_by_side(example: Example) -> RenderableType:
    asked = _asked(example)
    episodes = _beside(
        _episode(example.before, "before", "red"),
        _episode(example.after, "after", "green"),
        expand=True,
    )
    title = Text.assemble((asked, "bold"), (f"  (right: {example.before.task.answer})", "dim"))
    return Group(Text(), title, episodes)


def _beside(
    left: RenderableType, right: RenderableType, *, padding: int = 1, expand: bool = False
) -> Table:
    grid = Table.grid(expand=expand, padding=(0, padding))
    for _ in range(2):
        grid.add_column(ratio=1 if expand else None)
    grid.add_row(left, right)
    return grid


def _episode(trajectory: Trajectory, title: str, colour: str) -> Panel:
    """The model's words plain, the tool's words dim and coloured."""
    text = Text()
    for turn in trajectory.turns:
        text.append(turn.text)
        text.append(turn.observation_text, "cyan")
    return Panel(text, title=title, title_align="left", border_style=colour)


def _seconds(report: Report) -> RenderableType:
    total = sum(report.seconds.values())
    parts = " · ".join(f"{stage} {seconds:.0f} s" for stage, seconds in report.seconds.items())
    return Text(
        f"\n{total:.0f} s in all: {parts}\n{report.parameters / 1e6:.2f} million parameters · "
        f"{report.traces:,} traces in the cold start · {report.rl_steps} steps of "
        f"{report.trajectories // max(report.rl_steps, 1)} trajectories",
        "dim",
    )


def _show_files(console: Console, report: Report, folders: Folders) -> None:
    files = {
        "curve": folders.rl / "curve.png",
        "metrics": folders.rl / "metrics.jsonl",
        "trajectories": folders.rl / "trajectories.arrows",
        "model": final_policy(folders.rl, report.rl_steps),
        "this report": folders.root / "report.json",
    }
    console.print(Text("\nFiles", "bold"))
    for what, path in files.items():
        console.print(Text.assemble((f"{what:<14}", "dim"), str(path)), soft_wrap=True)


def _question(report: Report, example: Example | None) -> str:
    """A held-out problem of a kind that was learned: the one that is shown, if one is."""
    return next(problems("val", report.seed)).question if example is None else _asked(example)


def _asked(example: Example) -> str:
    question = example.before.task.prompt[-1]
    return question["content"] if isinstance(question, dict) else str(example.before.task.prompt)


def _show_next_steps(console: Console, question: str, report: Report, folders: Folders) -> None:
    """Commands to copy: a line each, never broken."""
    program = _program()
    commands = {
        f"{program} view {folders.rl}": "read what it wrote, as a page",
        f"{program} chat --run {folders.rl} -m '{question}'": "it learned these kinds only: "
        + ", ".join(report.after.families),
        f"{program} eval --run {folders.rl}": "measure it again",
        f"{program} quickstart algorithm.adv_estimator=gae": "PPO, with a critic",
        f"{program} quickstart algorithm.adv_estimator=reinforce_plus_plus": "REINFORCE++",
        f"{program} train --help": "your own model, data, tool and reward",
    }
    console.print(Text("\nNext", "bold"))
    for command, what in commands.items():
        console.print(Text.assemble((command, "bold"), (f"  # {what}", "dim")), soft_wrap=True)


def _program() -> str:
    """The command as it can be typed here: by name if it is on the PATH."""
    if shutil.which("agent-r1"):
        return "agent-r1"
    return os.path.relpath(Path(sys.executable).parent / "agent-r1")


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def _calls(policy: Policy) -> str:
    return "none" if policy.calls_that_work is None else _percent(policy.calls_that_work)
