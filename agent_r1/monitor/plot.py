"""``curve.png``: the course of a run in one picture, drawn from ``metrics.jsonl`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_r1.errors import DataError
from agent_r1.monitor.run import METRICS_FILE, load_metrics

CURVE_FILE = "curve.png"

_NOTHING = 1e-6
"""Below this a value on a second axis is drawn as the axis itself."""
_INK, _MUTED, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_GREEN, _BLUE, _ORANGE, _PURPLE, _RED = "#059669", "#2563eb", "#ea580c", "#7c3aed", "#dc2626"


@dataclass(frozen=True, slots=True)
class Series:
    """One line: the first of ``keys`` with data. Keys ending in ``*`` match by prefix."""

    label: str
    keys: tuple[str, ...]
    colour: str
    marked: bool = False
    """Few points that matter each, such as validations."""
    right: bool = False
    """On the axis at the right."""
    kind: str = ""
    """What it adds to the title of a panel that has none of its own."""


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """``title`` may be empty: then the kinds of the series that are drawn make it."""

    title: str
    series: tuple[Series, ...]
    share: bool = False
    """Values between 0 and 1, shown as percentages."""


PANELS = (
    PanelSpec(
        "",
        (
            Series("success, sampled in training", ("rollout/success",), _GREEN, kind="success"),
            Series(
                "validation",
                ("val-core/*accuracy/mean*", "val-core/*reward/mean*", "val-core/*"),
                _ORANGE,
                marked=True,
                kind="success",
            ),
            Series("reward", ("critic/rewards/mean",), _BLUE, right=True, kind="reward"),
        ),
        share=True,
    ),
    PanelSpec(
        "Tool use",
        (
            Series("trajectories that call a tool", ("rollout/tool_call_share",), _BLUE),
            Series("calls that succeed", ("tool/success",), _GREEN),
            Series("calls per trajectory", ("tool/calls/mean",), _PURPLE, right=True),
        ),
        share=True,
    ),
    PanelSpec(
        "Length of a trajectory",
        (
            Series("tokens written by the model", ("response_length/mean",), _BLUE),
            Series("turns", ("num_turns/mean",), _PURPLE, right=True),
        ),
    ),
    PanelSpec(
        "",
        (
            Series("entropy (nats)", ("actor/entropy",), _PURPLE, kind="entropy"),
            Series(
                "KL to the reference policy",
                ("actor/kl_loss", "actor/reward_kl_penalty"),
                _RED,
                right=True,
                kind="KL",
            ),
            Series(
                "KL to the policy before the step",
                ("actor/ppo_kl",),
                _ORANGE,
                right=True,
                kind="KL",
            ),
        ),
    ),
    PanelSpec(
        "Loss of the cold start",
        (
            Series("training", ("train/loss",), _BLUE),
            Series("validation", ("val/loss",), _ORANGE, marked=True),
        ),
    ),
)


def plot_curve(run_folder: Path | str, target: Path | str | None = None) -> Path:
    """Draw the curves of a run; panels without data are left out.

    Returns the picture's path, ``curve.png`` in the run folder unless ``target`` is given.

    Raises:
        DataError: there are no metrics to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    folder = Path(run_folder)
    lines = load_metrics(folder / METRICS_FILE)
    panels = [panel for panel in PANELS if any(_points(s, lines) for s in panel.series)]
    if not panels:
        raise DataError(f"{folder / METRICS_FILE} has no metrics to draw yet")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(5.6 * columns, 3.3 * rows + 0.3), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, lines)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    path = Path(target) if target is not None else folder / CURVE_FILE
    figure.savefig(path, facecolor="white")
    return path


def _draw(axis: Any, panel: PanelSpec, lines: Sequence[dict[str, float]]) -> None:
    drawn = _with_data(panel, lines)
    has_left = any(not series.right for series, _ in drawn)
    right = axis.twinx() if has_left and any(series.right for series, _ in drawn) else None
    handles = []
    for series, points in drawn:
        target = right if series.right and right is not None else axis
        handles.append(_draw_series(target, series, points))
    dress(axis, _title(panel, drawn), percent=panel.share and has_left)
    if right is not None:
        _dress_right(right, next(series for series, _ in drawn if series.right))
    if not (panel.share and has_left):
        _start_at_zero(axis)
    if right is not None:
        _start_at_zero(right)
    legend = axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=min(len(handles), 2),
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_color(_INK)


def _title(panel: PanelSpec, drawn: Sequence[tuple[Series, Any]]) -> str:
    """A panel names what it shows and nothing that this run has not."""
    made = panel.title or " and ".join(dict.fromkeys(series.kind for series, _ in drawn))
    return made[:1].upper() + made[1:]


def _with_data(
    panel: PanelSpec, lines: Sequence[dict[str, float]]
) -> list[tuple[Series, list[tuple[float, float]]]]:
    """The series with data. One that repeats an earlier one tells nothing (rewards of 0 and 1
    are the success), and neither does a second axis for what is 0 throughout (the KL of steps
    that are one update).
    """
    found: list[tuple[Series, list[tuple[float, float]]]] = []
    for series in panel.series:
        points = _points(series, lines)
        idle = series.right and all(abs(value) < _NOTHING for _, value in points)
        if points and not idle and all(points != earlier for _, earlier in found):
            found.append((series, points))
    return found


def _start_at_zero(axis: Any) -> None:
    """Show sizes as sizes, wherever nothing is negative."""
    values = [y for line in axis.lines for y in line.get_ydata()]
    if min(values) >= 0:
        axis.set_ylim(0, max(values) * 1.08 or 1)


def _draw_series(axis: Any, series: Series, points: Sequence[tuple[float, float]]) -> Any:
    """A line; a noisy one is drawn faint under its running mean."""
    x, y = zip(*points, strict=True)
    style: dict[str, Any] = {"color": series.colour, "label": series.label}
    if series.marked or len(points) < 20:
        marker = {"marker": "o", "markersize": 4} if series.marked or len(points) < 8 else {}
        (line,) = axis.plot(x, y, linewidth=1.8, zorder=3, **marker, **style)
        return line
    axis.plot(x, y, color=series.colour, linewidth=0.8, alpha=0.28)
    dash = (0, (4, 2)) if series.right else "solid"
    (line,) = axis.plot(x, smooth(y), linewidth=1.8, linestyle=dash, **style)
    return line


def smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a twentieth of the run."""
    half = max(1, len(values) // 40)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def dress(axis: Any, title: str, *, percent: bool = False) -> None:
    """Title, axis of steps and grid of a panel."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axis.set_xlabel("training step", fontsize=8, color=_MUTED, loc="right")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_MUTED, labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(_GRID)
    if percent:
        axis.set_ylim(-0.03, 1.05)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _dress_right(axis: Any, series: Series) -> None:
    axis.tick_params(axis="y", colors=series.colour, labelsize=8, length=0)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _points(series: Series, lines: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    """``(step, value)`` of the first key that has finite data."""
    for pattern in series.keys:
        name = _first_match(pattern, lines)
        points = [(line["step"], line[name]) for line in lines if name in line]
        finite = [(x, y) for x, y in points if abs(y) < float("inf")]
        if finite:
            return finite
    return []


def _first_match(pattern: str, lines: Sequence[dict[str, float]]) -> str:
    from fnmatch import fnmatchcase

    names = (name for line in lines for name in line if fnmatchcase(name, pattern))
    return next(names, pattern)
