"""Table and curves of a finished recipe: ``python report.py runs/gsm8k-smollm2``.

Everything is read from the files of the run: the three evaluations, and ``metrics.jsonl`` and
``trajectories.jsonl`` of the reinforcement learning. The curves are those by which the ReTool
paper (arXiv 2504.11536) describes its training in figures 3 and 4.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agent_r1.monitor.records import read_stored

STAGES = (("base", "base model"), ("cold-start", "cold start"), ("rl", "after RL"))
"""An evaluation is in ``eval-NAME``; that of the newest checkpoint of RL in ``eval-rl-step-*``."""
BLUE, GREEN, ORANGE, GREY = "#2563eb", "#059669", "#ea580c", "#9ca3af"


def main(folder: Path) -> None:
    places = {name: sorted(folder.glob(f"eval-{name}*"))[-1] for name, _ in STAGES}
    results = {name: read_evaluation(place) for name, place in places.items()}
    rl = read_metrics(folder / "rl")
    programs = read_programs(folder / "rl")
    for row in rl:
        row |= programs.get(int(row["step"]), {})
    (folder / "report.md").write_text(table(places, results, rl))
    draw(results, rl, folder / "curves.png")
    print((folder / "report.md").read_text())
    print(f"curves    {folder / 'curves.png'}")


def read_evaluation(folder: Path) -> dict[str, Any]:
    (report,) = json.loads((folder / "results.json").read_text())
    return report


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_programs(file: Path) -> dict[int, dict[str, float]]:
    """By step: lines of a program, and how far into the model's text the first one ends."""
    lines: dict[int, list[int]] = defaultdict(list)
    begins: dict[int, list[float]] = defaultdict(list)
    for stored in read_stored(file):
        turns = stored.trajectory.turns
        calls = [i for i, turn in enumerate(turns) if turn.tool_calls]
        if stored.split != "train" or not calls:
            continue
        texts = [turn.text for turn in turns]
        begins[stored.step].append(len("".join(texts[: calls[0] + 1])) / len("".join(texts)))
        programs = [texts[i].rpartition("<code>")[2].removesuffix("</code>") for i in calls]
        lines[stored.step] += [len(program.strip().split("\n")) for program in programs]
    return {
        step: {"program_lines": fmean(lines[step]), "first_program": fmean(begins[step])}
        for step in lines
    }


def solved(folder: Path) -> dict[str, float]:
    """Whether each problem was solved, by its id."""
    rows = map(json.loads, (folder / "trajectories.jsonl").read_text().splitlines())
    return {row["task"]["id"]: row["reward"]["value"] for row in rows if row["reward"]}


def paired(before: dict[str, float], after: dict[str, float]) -> tuple[float, float, float, float]:
    """Mean difference on the same problems, its bootstrap interval, and the sign test's p."""
    common = sorted(before.keys() & after.keys())
    gains = [after[key] - before[key] for key in common]
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(gains, k=len(gains))) for _ in range(5000))
    won, lost = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    n = won + lost
    tail = sum(math.comb(n, k) for k in range(max(won, lost), n + 1)) / 2**n if n else 1.0
    return fmean(gains), means[125], means[4874], min(1.0, 2 * tail)


def table(
    places: dict[str, Path], results: dict[str, dict[str, Any]], rl: list[dict[str, Any]]
) -> str:
    lines = [
        "| | accuracy (95 % interval) | calls the tool | calls that run | turns | tokens written |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in STAGES:
        report = results[name]
        avg = report["estimates"]["avg@1"]
        works = report["tool_success_share"]
        lines.append(
            f"| {title} ({report['tasks']} problems) "
            f"| {avg['value']:.1%} [{avg['low']:.1%}, {avg['high']:.1%}] "
            f"| {report['tool_call_share']:.1%} | {'' if works is None else f'{works:.1%}'} "
            f"| {report['mean_turns']:.2f} | {report['mean_response_length']:.0f} |"
        )
    gain, low, high, p = paired(solved(places["cold-start"]), solved(places["rl"]))
    lines.append("")
    lines.append(
        f"RL against the cold start, on the same problems: {gain:+.1%} "
        f"[{low:+.1%}, {high:+.1%}], two-sided sign test p = {p:.2g}."
    )
    steps = [row for row in rl if "timing_s/step" in row]
    minutes = sum(row["timing_s/step"] for row in steps) / 60
    lines.append(f"{len(steps)} steps of reinforcement learning took {minutes:.0f} minutes.")
    return "\n".join(lines) + "\n"


def smooth(values: list[float], window: int = 5) -> list[float]:
    return [fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def draw(results: dict[str, dict[str, Any]], rl: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(16, 6.6), layout="constrained")
    bars(axes[0, 0], results)
    panels = (
        (axes[0, 1], "Success of training samples", "rollout/success", GREEN, True),
        (axes[0, 2], "Trajectories that call the tool", "rollout/tool_call_share", BLUE, True),
        (axes[0, 3], "Calls that run without error", "tool/success", GREEN, True),
        (axes[1, 0], "Lines of a program", "program_lines", BLUE, False),
        (axes[1, 1], "End of the first program in the text", "first_program", BLUE, True),
        (axes[1, 2], "Tokens written by the model", "response_length/mean", BLUE, False),
        (axes[1, 3], "Entropy (nats per token)", "actor/entropy", ORANGE, False),
    )
    for axis, title, key, colour, share in panels:
        curve(axis, rl, title, key, colour, share)
    validation = [
        (r["step"], v)
        for r in rl
        for k, v in r.items()
        if k.startswith("val-core/") and "accuracy" in k
    ]
    if validation:
        points = zip(*validation, strict=True)
        axes[0, 1].plot(*points, "o--", color=ORANGE, label="held-out problems, greedy")
        axes[0, 1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def bars(axis: Any, results: dict[str, dict[str, Any]]) -> None:
    values = [results[name]["estimates"]["avg@1"] for name, _ in STAGES]
    heights = [v["value"] for v in values]
    errors = [
        [v["value"] - v["low"] for v in values],
        [v["high"] - v["value"] for v in values],
    ]
    axis.bar([t for _, t in STAGES], heights, yerr=errors, color=[GREY, BLUE, GREEN], capsize=5)
    for i, height in enumerate(heights):
        axis.text(i + 0.06, height, f"{height:.1%}", va="bottom", fontsize=9)
    axis.set_title("GSM8K test, greedy, 95 % intervals", fontsize=10)
    tidy(axis, share=True)


def curve(
    axis: Any, rl: list[dict[str, Any]], title: str, key: str, colour: str, share: bool
) -> None:
    points = [(row["step"], row[key]) for row in rl if key in row]
    if points:
        steps, values = map(list, zip(*points, strict=True))
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axis.plot(steps, smooth(values), color=colour, linewidth=2)
        axis.set_ylim(top=1.05 if share and max(values) > 0.9 else None)
    axis.set_title(title, fontsize=10)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("step of reinforcement learning", fontsize=8)
    tidy(axis, share=share)


def tidy(axis: Any, *, share: bool) -> None:
    axis.grid(axis="y", color="#e5e7eb")
    axis.spines[["top", "right"]].set_visible(False)
    if share:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
