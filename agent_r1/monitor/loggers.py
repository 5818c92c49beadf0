"""Loggers: where metrics go besides the run folder, without ever blocking the run.

A :class:`RunLogger` may be slow, may block for ever and may raise: it runs in a thread of
its own behind a bounded queue. What does not fit into the queue is dropped, and the first
failure is announced, once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent_r1.errors import ConfigError
from agent_r1.registry import import_path
from agent_r1.types import Trajectory


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger is told about the run."""

    path: Path
    project: str
    experiment: str
    run_id: str
    """The same before and after a resume."""
    config: Mapping[str, Any] = field(default_factory=dict)


class RunLogger(Protocol):
    """A destination of metrics. Every method may raise; none is called concurrently."""

    def start(self, info: RunInfo) -> None:
        """Called first, once."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step. Steps may repeat after a resume."""

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        """Validation trajectories to show."""

    def close(self) -> None:
        """Called last, once."""


class BackgroundLogger:
    """Runs a logger in a thread that training never waits for.

    ``announce`` receives the first failure and the first drop. ``close`` gives the logger
    ``patience`` seconds to finish and then leaves it behind.
    """

    def __init__(
        self,
        name: str,
        logger: RunLogger,
        announce: Callable[[str], None],
        *,
        capacity: int = 1000,
        patience: float = 20.0,
    ) -> None:
        self.name = name
        self._logger = logger
        self._announce = announce
        self._patience = patience
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        self._complaints: set[str] = set()
        self._started = False
        self._thread = threading.Thread(target=self._work, name=f"log-{name}", daemon=True)
        self._thread.start()

    def start(self, info: RunInfo) -> None:
        def begin() -> None:
            self._logger.start(info)
            self._started = True

        self._put(begin)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._put(lambda: self._logger.log(metrics, step))

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        self._put(lambda: self._logger.samples(trajectories, step))

    def close(self) -> None:
        deadline = time.monotonic() + self._patience
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=self._patience)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._complain("blocked", "did not finish in time; its last metrics may be missing")

    def _put(self, work: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self._complain("full", "does not keep up; some of its metrics are left out")

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            self._attempt(work, first=not self._started)
            if not self._started:
                return  # there is nothing to log to
        if self._started:
            self._attempt(self._logger.close)

    def _attempt(self, work: Callable[[], None], *, first: bool = False) -> None:
        try:
            work()
        except Exception as error:
            lost = "nothing will be logged there" if first else "some of its metrics are lost"
            self._complain("failed", f"failed ({type(error).__name__}: {error}); {lost}")

    def _complain(self, kind: str, what: str) -> None:
        if kind not in self._complaints:
            self._complaints.add(kind)
            self._announce(f"logger {self.name} {what}. Training goes on.")


class WandbLogger:
    """Weights & Biases. Offline without an account, or with ``WANDB_MODE=offline``.

    Steps are a metric of their own (``training/global_step``), because W&B silently drops
    rows whose built-in step is not above the last one, as after a resume.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, info: RunInfo) -> None:
        import wandb

        chosen = "WANDB_MODE" in os.environ or _has_wandb_account()
        self._run = wandb.init(
            project=info.project,
            name=info.experiment,
            id=info.run_id,
            dir=str(info.path),
            config=dict(info.config),
            resume="allow",
            mode=None if chosen else "offline",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("training/global_step")
        self._run.define_metric("*", step_metric="training/global_step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "training/global_step": step})

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(_COLUMNS))
        for row in _sample_rows(trajectories, step):
            table.add_data(*row)
        self._run.log({"val/generations": table, "training/global_step": step})

    def close(self) -> None:
        self._run.finish()


class TensorboardLogger:
    """TensorBoard event files in the run folder."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, info: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(info.path / "tensorboard"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        for i, trajectory in enumerate(trajectories):
            self._writer.add_text(f"val/generation_{i}", trajectory.transcript, step)

    def close(self) -> None:
        self._writer.close()


class MlflowLogger:
    """MLflow: the server that ``MLFLOW_TRACKING_URI`` names, else ``mlruns`` in the run folder.

    A run that is continued goes on in the same run of MLflow, found by its tag
    ``agent_r1.run_id``. Characters that MLflow does not allow in names, such as ``@``, become
    ``_``.
    """

    _TAG = "agent_r1.run_id"

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""

    def start(self, info: RunInfo) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # MLflow asks whoever keeps runs in files whether they would not rather have a database.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (info.path.resolve() / "mlruns").as_uri()
        client = self._client = MlflowClient(uri)
        known = client.get_experiment_by_name(info.project)
        group = known.experiment_id if known else client.create_experiment(info.project)
        found = client.search_runs([group], f"tags.`{self._TAG}` = '{info.run_id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return
        tags = {self._TAG: info.run_id}
        self._run = client.create_run(group, run_name=info.experiment, tags=tags).info.run_id
        settings = [Param(name, str(value)[:500]) for name, value in _leaves(info.config)]
        for first in range(0, len(settings), 100):  # as many as a request may have
            client.log_batch(self._run, params=settings[first : first + 100])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        listed = [
            Metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, step)
            for name, value in metrics.items()
        ]
        for first in range(0, len(listed), 1000):
            self._client.log_batch(self._run, metrics=listed[first : first + 1000])

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in _sample_rows(trajectories, step)]
        self._client.log_dict(self._run, {"rows": rows}, f"val/generations-{step:06d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._run)


class TrackioLogger:
    """trackio, with its files where ``TRACKIO_DIR`` says or trackio has them.

    A run that is continued goes on under the same name, which has the run's id in it.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, info: RunInfo) -> None:
        import trackio

        self._run = trackio.init(
            project=info.project,
            name=f"{info.experiment}-{info.run_id}",
            config=dict(_leaves(info.config)),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def samples(self, trajectories: Sequence[Trajectory], step: int) -> None:
        import pandas
        import trackio

        frame = pandas.DataFrame(_sample_rows(trajectories, step), columns=list(_COLUMNS))
        self._run.log({"val/generations": trackio.Table(dataframe=frame)}, step=step)

    def close(self) -> None:
        self._run.finish()


_COLUMNS = ("step", "task", "transcript", "answer", "reward")


def _sample_rows(trajectories: Sequence[Trajectory], step: int) -> list[tuple[Any, ...]]:
    return [
        (step, t.task.id, t.transcript, str(t.task.answer), t.reward.value if t.reward else None)
        for t in trajectories
    ]


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            yield f"{prefix}{name}", value if plain else str(value)


_LOGGERS: Mapping[str, Callable[[], RunLogger]] = {
    "wandb": WandbLogger,
    "tensorboard": TensorboardLogger,
    "mlflow": MlflowLogger,
    "trackio": TrackioLogger,
}


def make_loggers(
    names: Sequence[str], announce: Callable[[str], None]
) -> tuple[BackgroundLogger, ...]:
    """The loggers of ``trainer.logger`` other than the console, in their threads.

    A name with a dot or colon is the path of a class without arguments.

    Raises:
        ConfigError: a package is not installed, so that asking for it was a mistake.
    """
    made = []
    for name in names:
        if name in ("console", "jsonl"):
            continue
        _require_package(name)
        factory = _LOGGERS[name] if name in _LOGGERS else import_path(name)
        made.append(BackgroundLogger(name, factory(), announce))
    return tuple(made)


def _require_package(name: str) -> None:
    from importlib.util import find_spec

    if name in _LOGGERS and find_spec(name) is None:
        raise ConfigError(
            f"trainer.logger={name} needs the package {name}: pip install 'agent-r1[{name}]', or "
            "leave it out of trainer.logger"
        )


def _has_wandb_account() -> bool:
    from netrc import NetrcParseError, netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc().hosts)
    except (OSError, NetrcParseError):
        return False
