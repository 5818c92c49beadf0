"""Runs as data frames, for notebooks: ``load("runs/my/run").metrics()``.

Frames are those of pandas, which ``pip install 'agent-r1[notebook]'`` brings, or on request those
of polars and ``datasets``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor.metrics import succeeded
from agent_r1.monitor.records import StoredTrajectory, read_stored, trajectories_file
from agent_r1.monitor.run import METRICS_FILE, load_metrics

Form = Literal["pandas", "polars", "datasets"]


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run or of an evaluation. Every call reads the files anew."""

    path: Path

    def metrics(self) -> Any:
        """``pandas.DataFrame`` with the steps as index and one column for each metric.

        A step without a metric has NaN there. For polars:
        ``polars.from_pandas(run.metrics().reset_index())``.

        Raises:
            DataError: the folder has no metrics, as an evaluation's has none.
        """
        pandas = _pandas()
        lines = load_metrics(self.path / METRICS_FILE)
        steps = pandas.Index([int(line.pop("step")) for line in lines], name="step", dtype="int64")
        return pandas.DataFrame(lines, index=steps)

    def trajectories(self, *, text: bool = False, form: Form = "pandas") -> Any:
        """Frame with one row for each trajectory, in the order of the file.

        ``reward`` is NaN where there was none, and ``reward/<part>`` holds its parts. Lengths
        are in tokens, times in seconds. ``text`` adds what was written, which may be large:
        ``model_text`` is the model's, ``transcript`` has the environment's as well.

        ``form``: a frame of pandas or polars, or a ``datasets.Dataset``; a part of the reward
        that only some trajectories have is null or NaN in the others.

        Raises:
            DataError: the file is missing or damaged.
        """
        rows = (_row(stored, text) for stored in read_stored(self.path))
        return _framed(rows, form)


def load(path: Path | str) -> Run:
    """The run in a folder, which may still be training.

    Raises:
        DataError: the folder has neither metrics nor trajectories.
    """
    folder = Path(path)
    files = (folder / METRICS_FILE, trajectories_file(folder))
    if not any(file.is_file() for file in files):
        raise DataError(
            f"{folder} is no run: it has neither {METRICS_FILE} nor trajectories; give "
            "the folder that training or evaluation wrote"
        )
    return Run(folder)


def _row(stored: StoredTrajectory, text: bool) -> dict[str, Any]:
    trajectory = stored.trajectory
    reward, calls = trajectory.reward, trajectory.tool_calls
    row = {
        "step": stored.step,
        "split": stored.split,
        "id": trajectory.id,
        "group_id": trajectory.group_id,
        "index": trajectory.index,
        "task_id": trajectory.task.id,
        "env": trajectory.task.env,
        "data_source": trajectory.task.data_source,
        "outcome": trajectory.outcome.value,
        "error": trajectory.error,
        "reward": float("nan") if reward is None else reward.value,
        "success": succeeded(trajectory),
        "turns": len(trajectory.turns),
        "response_length": trajectory.response_length,
        "observation_length": sum(len(turn.observation_ids) for turn in trajectory.turns),
        "tool_calls": len(calls),
        "tool_errors": sum(not call.success for call in calls),
        "seconds": trajectory.seconds,
    }
    if reward is not None:
        row |= {f"reward/{name}": value for name, value in reward.parts.items()}
    if text:
        row |= {"model_text": trajectory.model_text, "transcript": trajectory.transcript}
    return row


def _framed(rows: Iterable[dict[str, Any]], form: Form) -> Any:
    if form == "polars":
        return _imported("polars").DataFrame(list(rows), infer_schema_length=None)
    frame = _pandas().DataFrame(rows)
    if form == "pandas":
        return frame
    return _imported("datasets").Dataset.from_pandas(frame, preserve_index=False)


def _imported(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"form={package} needs that package: pip install {package}") from error


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("frames need pandas: pip install 'agent-r1[notebook]'") from error
    return pandas
