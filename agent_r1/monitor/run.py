"""The folder of one run: everything that is known about it, while it runs and afterwards.

::

    config.yaml         the resolved configuration
    run.json            versions, revision, seeds, hardware, command, sessions: where each
                        began and which settings it changed
    metrics.jsonl       one line per step
    trajectories.arrows every trajectory (see monitor/arrows.py), or trajectories.jsonl with
                        one line for each (see monitor/records.py)
    tokens.arrows       what the update saw of each trained token (see monitor/tokens.py)
    index.sqlite        finds them (see monitor/index); made by whoever looks
    checkpoints/        written by trainer/checkpoint.py
    curve.png           drawn from metrics.jsonl

Metrics and trajectories are cut back to the checkpoint's step on a resume, so that after it
they hold what an uninterrupted run would have written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from agent_r1.config.changes import Change
from agent_r1.config.load import to_yaml
from agent_r1.config.section import Section
from agent_r1.errors import ConfigError
from agent_r1.monitor.console import Display, Progress, QuietDisplay, make_display
from agent_r1.monitor.health import HealthMonitor
from agent_r1.monitor.jsonl import JsonlFile, json_number, read_jsonl
from agent_r1.monitor.loggers import BackgroundLogger, RunInfo, make_loggers
from agent_r1.monitor.provenance import now, provenance
from agent_r1.monitor.records import ARROWS_FILE, TRAJECTORIES_FILE, Split, Stored
from agent_r1.monitor.store import TrajectoryFile, open_tokens, open_trajectories
from agent_r1.types import Trajectory

if TYPE_CHECKING:
    from agent_r1.monitor.tokens import TokenFile, TokenRecords

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ARCHIVE_FOLDER = "earlier"


class RunFolder:
    """Where a run writes and what it tells.

    Telling never stops a run: a full disk or a failing logger is announced once. Only
    opening the folder raises. Use it as a context manager, or ``close`` it.
    """

    def __init__(
        self,
        path: Path,
        config: Section,
        *,
        seeds: Mapping[str, int] | None = None,
        loggers: Sequence[BackgroundLogger] = (),
        display: Display | None = None,
        project: str = "agent_r1",
        experiment: str = "default",
        shown_generations: int = 0,
        changes: Sequence[Change] = (),
        trajectory_file: Literal["arrow", "jsonl"] = "arrow",
        token_file: bool = False,
    ) -> None:
        self.path = path
        self._changes = tuple(changes)
        self._loggers = tuple(loggers)
        self._display = display or QuietDisplay()
        self._complaints: set[str] = set()
        self._shown_generations = shown_generations
        self._logged = False
        self._health = HealthMonitor()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            self._record = _RunRecord(path / "run.json", seeds or {})
            (path / CONFIG_FILE).write_text(to_yaml(config))
            self._metrics = JsonlFile(path / METRICS_FILE)
            self._trajectories = open_trajectories(path, trajectory_file)
            self._tokens = open_tokens(path) if token_file else None
        except OSError as error:
            raise ConfigError(
                f"the run folder {path} cannot be written ({error.strerror}); set "
                "trainer.default_local_dir to a folder that can"
            ) from error
        info = RunInfo(path, project, experiment, self._record.run_id, config.model_dump())
        for logger in self._loggers:
            logger.start(info)
        self._display.begin(f"{project} · {experiment}", str(path))

    @classmethod
    def open(cls, config: Any, changes: Sequence[Change] = ()) -> RunFolder:
        """The folder that a configuration with a ``trainer`` section asks for.

        ``changes`` are the settings that a continued run changes; :meth:`rewind` tells them.

        What an earlier run left there is moved into the subfolder ``earlier`` when it is not
        to be continued: ``resume_mode=disable``, or it has no checkpoint.
        """
        trainer = config.trainer
        has_checkpoint = any(trainer.run_dir.glob("checkpoints/step-*"))
        if trainer.resume_mode == "disable" or not has_checkpoint:
            archive(trainer.run_dir)
        display = make_display(trainer.logger)
        return cls(
            trainer.run_dir,
            config,
            seeds={"trainer.seed": trainer.seed},
            loggers=make_loggers(trainer.logger, display.announce),
            display=display,
            project=trainer.project_name,
            experiment=trainer.experiment_name,
            shown_generations=getattr(trainer, "log_val_generations", 0),  # a cold start has none
            changes=changes,
            trajectory_file=getattr(trainer, "trajectory_file", "arrow"),  # likewise
            token_file=getattr(trainer, "token_file", False),
        )

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.path / "checkpoints"

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step``: the run is about to repeat it."""
        self._metrics.rewind(step)
        self._trajectories.rewind(step)
        if self._tokens is not None:
            self._tokens.rewind(step)
        self._health = HealthMonitor()
        for line in load_metrics(self.path / METRICS_FILE):
            self._health.add(line)
        self._record.continue_from(step, self._changes)
        changed = [f"  {change}" for change in self._changes]
        said = f", from here on with {_settings(len(changed))}:" if changed else ""
        self.announce("\n".join([f"continuing after step {step}{said}", *changed]))

    def expect(self, total_steps: int) -> None:
        """Say how many steps the run will have, for the progress view."""
        self._display.expect(total_steps)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record the metrics of a step, everywhere.

        The first call of a session replaces what an earlier one wrote for this step or later.
        """
        if not self._logged:
            self._logged = True
            self._metrics.rewind(step - 1)
        numbers = {name: float(value) for name, value in metrics.items()}
        line = {"step": step, "time": now()} | {k: json_number(v) for k, v in numbers.items()}
        self._append(self._metrics, [line])
        for logger in self._loggers:
            logger.log(numbers, step)
        self._display.log(numbers, step)
        for finding in self._health.add(numbers):
            self.announce(f"step {step}: {finding.sentence}")

    def store(self, trajectories: Sequence[Trajectory], *, step: int) -> None:
        """Record the training trajectories of a step, complete."""
        self._store(trajectories, step, "train")
        if trajectories:
            self._display.sample(trajectories[-1])

    def store_tokens(self, records: TokenRecords, *, step: int) -> None:
        """Record what the update of a step saw of every token, if the run keeps that."""
        if self._tokens is not None and records.ids:
            self._append(self._tokens, [(step, records)])

    def store_validation(self, trajectories: Sequence[Trajectory], *, step: int) -> None:
        """Record validation trajectories, and show the loggers the first few."""
        self._store(trajectories, step, "val")
        shown = trajectories[: self._shown_generations]
        for logger in self._loggers if shown else ():
            logger.samples(shown, step)

    def progress(self, label: str, total: int) -> Progress:
        """A function that is told how many of ``total`` items of a phase are done."""
        return self._display.progress(label, total)

    def phase(self, label: str) -> AbstractContextManager[None]:
        """Show that something of unknown length is under way, as long as the context lasts."""
        return self._display.phase(label)

    def announce(self, message: str) -> None:
        """Tell the person. May be called by a signal handler and from any thread."""
        self._display.announce(message)

    def close(self, outcome: str = "finished") -> None:
        """Finish every file, logger and view. ``outcome``: finished, interrupted or failed."""
        self._display.end()
        for logger in self._loggers:
            logger.close()
        with contextlib.suppress(OSError):
            self._record.end_session(outcome)
        self._metrics.close()
        self._trajectories.close()
        if self._tokens is not None:
            self._tokens.close()
        os.close(self._lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("finished" if kind is None else "interrupted" if stopped else "failed")

    def _store(self, trajectories: Sequence[Trajectory], step: int, split: Split) -> None:
        self._append(self._trajectories, [Stored(t, step, split) for t in trajectories])

    def _append(self, file: JsonlFile | TrajectoryFile | TokenFile, records: Sequence[Any]) -> None:
        try:
            file.append(records)
        except OSError as error:
            if file.path.name not in self._complaints:
                self._complaints.add(file.path.name)
                self.announce(
                    f"{file.path} cannot be written ({error.strerror}): records are missing there. "
                    "Training goes on; free some disk space."
                )


def _settings(count: int) -> str:
    return "1 changed setting" if count == 1 else f"{count} changed settings"


def archive(folder: Path) -> Path | None:
    """Move the contents of a run folder to ``earlier/N`` in it; ``None`` if there are none."""
    if not folder.is_dir():
        return None
    contents = [p for p in folder.iterdir() if p.name not in (ARCHIVE_FOLDER, ".lock")]
    of_runs = (METRICS_FILE, TRAJECTORIES_FILE, ARROWS_FILE, "checkpoints")
    if not any(path.name in of_runs for path in contents):
        return None
    os.close(_lock(folder))  # not while another process writes there
    number = 1
    while (target := folder / ARCHIVE_FOLDER / f"{number:03}").exists():
        number += 1
    target.mkdir(parents=True)
    for path in contents:
        shutil.move(path, target / path.name)
    return target


def load_metrics(path: Path | str) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl`` with ``step`` and without ``time``, in order."""
    lines = []
    for record in read_jsonl(path):
        record.pop("time", None)
        lines.append({name: float(value) for name, value in record.items()})
    return lines


class _RunRecord:
    """``run.json``: what the run is, and each session of it."""

    def __init__(self, path: Path, seeds: Mapping[str, int]) -> None:
        self._path = path
        earlier = self._read()
        self.run_id: str = earlier.get("run_id") or uuid4().hex[:12]
        self._sessions: list[dict[str, Any]] = earlier.get("sessions", [])
        self._facts = {"run_id": self.run_id, "created": earlier.get("created") or now()}
        self._facts |= provenance(seeds)
        self._sessions.append({"started": now(), "from_step": 0})
        self._write()

    def continue_from(self, step: int, changes: Sequence[Change] = ()) -> None:
        self._sessions[-1]["from_step"] = step
        if changes:
            told = {c.key: {"before": c.before, "after": c.after} for c in changes}
            self._sessions[-1]["changes"] = told
        self._write()

    def end_session(self, outcome: str) -> None:
        self._sessions[-1] |= {"ended": now(), "outcome": outcome}
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self) -> None:
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._facts | {"sessions": self._sessions}, indent=2) + "\n")
        draft.replace(self._path)


def _lock(folder: Path) -> int:
    """Hold the folder for this process until the descriptor is closed."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another process is writing to the run folder {folder}; wait for it, or set "
            "trainer.experiment_name or trainer.default_local_dir to something else"
        ) from error
    return descriptor
