"""Metrics of several runs in one picture: a line for each setting, a band over its seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from agent_r1.errors import DataError
from agent_r1.monitor.plot import dress, smooth
from agent_r1.monitor.run import CONFIG_FILE, METRICS_FILE, load_metrics

COLOURS = ("#2563eb", "#ea580c", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#a16207", "#6b7280")
SMOOTH_FROM = 20
"""Curves of so many points are drawn as running means."""
_FORMATS = (".png", ".svg", ".pdf")
_ONLY_NAMES = {"seed", "experiment_name", "default_local_dir"}


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, smallest and largest value over the runs, at each step that all of them have."""

    steps: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def plot_metrics(runs: Sequence[Path], patterns: Sequence[str], target: Path) -> list[str]:
    """Draw one panel for each metric that a pattern (``*`` as in a shell) names.

    Runs whose settings differ in seeds and names alone share a line and a band from their
    smallest to their largest value. ``target`` ends in .png, .svg or .pdf. Returns the
    metrics drawn.

    Raises:
        DataError: another ending, a target that cannot be written, a run without metrics, or a
            pattern that names none.
    """
    lines = {run: load_metrics(run / METRICS_FILE) for run in runs}
    names = _metrics(
        patterns, sorted({name for rows in lines.values() for row in rows for name in row})
    )
    draw_panels(runs, lines, {name: name for name in names}, target)
    return names


def draw_panels(
    runs: Sequence[Path],
    lines: Mapping[Path, Sequence[dict[str, float]]],
    titles: Mapping[str, str],
    target: Path,
    shares: Collection[str] = (),
) -> None:
    """One panel for each of ``titles``; those among ``shares`` are drawn as percentages.

    ``lines`` are each run's values by name, with their ``step``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if target.suffix.lower() not in _FORMATS:
        raise DataError(f"{target} has to end in one of {', '.join(_FORMATS)}")
    names = list(titles)
    groups = seed_groups(runs)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.3 * rows + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for colour, (label, members) in enumerate(groups.items()):
            band = band_of([curve(lines[run], name) for run in members])
            _draw(axis, band, label, COLOURS[colour % len(COLOURS)])
        dress(axis, titles[name], percent=name in shares)
        if len(groups) > 1 or len(runs) > 1:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    try:
        figure.savefig(target, facecolor="white")
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}") from error


def seed_groups(
    runs: Sequence[Path], settings: Mapping[Path, Mapping[str, Any] | None] | None = None
) -> dict[str, list[Path]]:
    """Runs of equal settings, seeds and names apart, under a label of the first's name.

    ``settings`` are what :func:`comparable` gives of each run, where they have been read already.
    """
    known = {run: comparable(run) for run in runs} if settings is None else settings
    found: dict[str, list[Path]] = {}
    for run in runs:
        found.setdefault(_identity(run, known[run]), []).append(run)
    groups: dict[str, list[Path]] = {}
    for members in found.values():
        label = members[0].resolve().name
        if len(members) > 1:
            label += f" and {len(members) - 1} more"
        if label in groups:
            label = str(members[0])
        groups[label] = members
    return groups


def curve(lines: Sequence[dict[str, float]], name: str) -> dict[float, float]:
    """Step → value where it is finite; a running mean of about a twentieth of a long run."""
    points = {x["step"]: x[name] for x in lines if math.isfinite(x.get(name, math.nan))}
    values = list(points.values())
    if len(values) >= SMOOTH_FROM:
        values = smooth(values)
    return dict(zip(points, values, strict=True))


def band_of(curves: Sequence[dict[float, float]]) -> Band:
    """The band of the curves that have data; empty if none has."""
    curves = [points for points in curves if points]
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    columns = [[points[step] for points in curves] for step in common]
    return Band(
        tuple(common),
        tuple(math.fsum(values) / len(values) for values in columns),
        tuple(min(values) for values in columns),
        tuple(max(values) for values in columns),
    )


def _draw(axis: Any, band: Band, label: str, colour: str) -> None:
    if not band.steps:
        return
    marker = {"marker": "o", "markersize": 4} if len(band.steps) < 8 else {}
    axis.plot(band.steps, band.mean, color=colour, linewidth=1.8, label=label, **marker)
    if band.low != band.high:
        axis.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.18, linewidth=0)


def _metrics(patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in known if name != "step" and fnmatchcase(name, pattern)]
        if not matching:
            raise DataError(
                f"no metric is called {pattern!r}; there are {', '.join(known[:12])}"
                + (" …" if len(known) > 12 else "")
            )
        chosen |= dict.fromkeys(matching)
    return list(chosen)


def comparable(run: Path) -> dict[str, Any] | None:
    """The settings without seeds and names, paths seen from the folder above the run.

    Runs of several seeds often have models of their own beside them, whose paths then are the
    same. None where there are no settings.
    """
    try:
        settings = yaml.load((run / CONFIG_FILE).read_text(), yaml.CSafeLoader)
        own = str(Path(settings["trainer"]["default_local_dir"]).parent)
    except (OSError, yaml.YAMLError):
        return None
    except (KeyError, TypeError):
        own = ""
    made = _without_names(settings, own if len(Path(own).parts) > 1 else "")
    return made if isinstance(made, dict) else None


def _identity(run: Path, settings: Mapping[str, Any] | None) -> str:
    """The settings that make two runs comparable; the folder itself where there are none."""
    if settings is None:
        return str(run.resolve())
    return json.dumps(settings, sort_keys=True, default=str)


def _without_names(settings: Any, own: str) -> Any:
    if isinstance(settings, str) and own and settings.startswith(f"{own}/"):
        return settings.removeprefix(f"{own}/")
    if not isinstance(settings, dict):
        return settings
    return {k: _without_names(v, own) for k, v in settings.items() if k not in _ONLY_NAMES}
