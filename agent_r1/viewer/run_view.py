"""One run or evaluation as the application reads it: state, metrics, settings, findings."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from threading import Lock, Thread
from typing import Any

import yaml

from agent_r1.monitor.compare import comparable
from agent_r1.monitor.health import Finding, findings
from agent_r1.monitor.query import RunIndex
from agent_r1.monitor.records import ARROWS_FILE, TRAJECTORIES_FILE, trajectories_file
from agent_r1.monitor.run import CONFIG_FILE, METRICS_FILE
from agent_r1.monitor.tokens import TOKENS_FILE, TokenFinder
from agent_r1.under_way import Part, SlowLines, to_stderr
from agent_r1.viewer.growing import GrowingJsonl
from agent_r1.viewer.latest import Latest, mark_of
from agent_r1.viewer.shown import Seen

_QUIET_SECONDS = 600.0
"""After so long without a step a run whose lock cannot be seen counts as stopped."""
_RECENT = 20
_SHOWN = (TRAJECTORIES_FILE, ARROWS_FILE, TOKENS_FILE, "run.json", "results.json")
_VALIDATION = ("val-core/*accuracy/mean@*", "val-core/*reward/mean@*", "val-core/*")


@dataclass(frozen=True, slots=True)
class Measured:
    """What ``metrics.jsonl`` tells."""

    steps: Sequence[Mapping[str, float]]
    names: Sequence[str]
    pace: float | None
    """Seconds from one step to the next."""
    updated: Any
    findings: Sequence[tuple[int, Finding]]


class RunView:
    """Reads a folder; the index of its trajectories is all that it adds. Safe from threads."""

    def __init__(self, key: str, path: Path) -> None:
        self.key = key
        self.path = path
        self.label = path.name
        self._lines = GrowingJsonl(path / METRICS_FILE)
        self._measured = Latest(self._measure, path / METRICS_FILE)
        self._settings = Latest(self._read_settings, path / CONFIG_FILE)
        self._comparable = Latest(lambda: comparable(path), path / CONFIG_FILE)
        self._lock, self._last_lock = Lock(), Lock()
        self._index: RunIndex | None = None
        self._reader: Thread | None = None
        self._tokens = TokenFinder(path)
        self._last: tuple[str, Mapping[str, Any], Seen | None] = ("", {}, None)

    def metrics(self) -> Sequence[Mapping[str, float]]:
        """The steps as ``load_metrics`` gives them."""
        return self._measured.get().steps

    def names(self) -> Sequence[str]:
        """Every metric that some step has."""
        return self._measured.get().names

    def settings(self) -> Mapping[str, Any]:
        """``config.yaml`` with dotted keys; empty where there is none."""
        return self._settings.get()

    def comparable(self) -> Mapping[str, Any] | None:
        """The settings without seeds and names: see :mod:`agent_r1.monitor.compare`."""
        return self._comparable.get()

    def _measure(self) -> Measured:
        lines = self._lines.records()
        steps = [_numbers(line) for line in lines]
        names = sorted({name for line in lines for name in line} - {"step", "time"})
        updated = lines[-1].get("time") if lines else None
        return Measured(steps, names, pace_of(lines), updated, findings(steps))

    def _read_settings(self) -> Mapping[str, Any]:
        try:
            found = yaml.load((self.path / CONFIG_FILE).read_text(), yaml.CSafeLoader)
        except (OSError, yaml.YAMLError):
            return {}
        return flat(found) if isinstance(found, dict) else {}

    def record(self) -> dict[str, Any]:
        """``run.json``: where the run came from. Empty where there is none."""
        return _json_object(self.path / "run.json")

    def results(self) -> Any:
        """``results.json`` of an evaluation; None elsewhere."""
        try:
            return json.loads((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return None

    @property
    def has_trajectories(self) -> bool:
        try:
            return trajectories_file(self.path).stat().st_size > 0
        except OSError:
            return False

    def trajectory(self, key: str) -> tuple[Mapping[str, Any], Seen | None]:
        """A record, with arrays where its file has such, and what the update saw of its tokens.

        The second is None where the trajectory was not trained on. The last one is remembered:
        its turns are asked for one after the other.

        Raises:
            DataError: there is none of that key.
        """
        with self._last_lock:
            mark = f"{key} {self.mark()}"
            if self._last[0] != mark:
                record = self.index().trajectory(key, arrays=True)
                self._last = mark, record, self._seen(record)
            return self._last[1:]

    def _seen(self, record: Mapping[str, Any]) -> Seen | None:
        if record["split"] != "train":
            return None
        step, staleness = record["step"], self.settings().get("trainer.max_staleness", 0)
        return self._tokens.find(record["id"], step, step + staleness)

    def index(self) -> RunIndex:
        """The trajectories, with what was written until now, or as far as it has been read."""
        with self._lock:
            if self._index is None:
                self._index = RunIndex(self.path)
            if self._reader and self._reader.is_alive():
                self._index.look()
                return self._index
            self._index.refresh()
            if self._index.pending:
                self._reader = Thread(target=self._read_on, daemon=True)
                self._reader.start()
            return self._index

    def _read_on(self) -> None:
        """Take in a large run while its reader looks at what is there already."""
        index, before = RunIndex(self.path), -1  # of its own, so that nobody waits for it
        whole, lines = index.pending, SlowLines(to_stderr)  # the page tells as well
        with closing(index), closing(lines):
            while index.pending and index.pending != before and self._index is not None:
                before = index.pending
                lines.show(Part(f"indexing {self.label}", whole - before, whole, of_bytes=True))
                index.refresh()
                time.sleep(0.02)  # requests want the processor as well

    def close(self) -> None:
        with self._lock:
            index, self._index = self._index, None
        if self._reader is not None:
            self._reader.join()
        if index is not None:
            index.close()

    def state(self) -> str:
        """``training``, ``finished``, ``interrupted``, ``failed``, ``stopped`` or ``evaluation``.

        A process that trains holds the folder's lock. Asking for the lock could keep a run
        from starting, so the kernel's list of locks is read instead; where there is none, a
        session without an end counts as training while steps keep coming.
        """
        if self.results() is not None:
            return "evaluation"
        held = _is_locked(self.path / ".lock")
        if held:
            return "training"
        sessions = self.record().get("sessions") or [{}]
        outcome = sessions[-1].get("outcome")
        if outcome:
            return str(outcome)
        if held is None and self._silence() < _QUIET_SECONDS:
            return "training"
        return "stopped"

    def _silence(self) -> float:
        try:
            return time.time() - (self.path / METRICS_FILE).stat().st_mtime
        except OSError:
            return math.inf

    def mark(self) -> str:
        """Changes whenever something was written that the application shows."""
        return mark_of(self.path / name for name in (*_SHOWN, METRICS_FILE))

    def summary(self) -> dict[str, Any]:
        """What the table of runs shows."""
        measured, state = self._measured.get(), self.state()
        steps, pace = measured.steps, measured.pace
        total = self.settings().get("trainer.total_training_steps")
        step = int(steps[-1]["step"]) if steps else None
        left = (total - step) * pace if total and step is not None and pace else None
        return {
            "key": self.key,
            "label": self.label,
            "path": str(self.path),
            "state": state,
            "step": step,
            "total": total,
            "reward": _last(steps, "critic/rewards/mean"),
            "success": _last(steps, "rollout/success"),
            "validation": last_matching(steps, _VALIDATION),
            "loss": _last(steps, "train/loss"),
            "created": self.record().get("created"),
            "updated": measured.updated,
            "pace": pace,
            "left": left if state == "training" else None,
            "findings": [
                {"step": at, "check": f.check, "metric": f.metric, "sentence": f.sentence}
                for at, f in measured.findings
            ],
            "has_trajectories": self.has_trajectories,
        }


def pace_of(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from one step to the next, the median of the last ones."""
    times = [_time(line.get("time")) for line in lines[-_RECENT:]]
    gaps = [b - a for a, b in pairwise(times) if a and b and b > a]
    return median(gaps) if gaps else None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def last_matching(
    steps: Sequence[Mapping[str, float]], patterns: Sequence[str]
) -> dict[str, Any] | None:
    """The newest value of the first pattern that any step answers, with its name and step."""
    for pattern in patterns:
        wanted = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        for line in reversed(steps):
            for name in line:
                if wanted.fullmatch(name) and math.isfinite(line[name]):
                    return {"name": name, "value": line[name], "step": int(line["step"])}
    return None


def _last(steps: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = (line[name] for line in reversed(steps) if name in line)
    return next((value for value in values if math.isfinite(value)), None)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in line.items():
        if name != "time":
            try:
                found[name] = float(value)
            except (TypeError, ValueError):
                continue
    return found


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC).timestamp()
    except ValueError:
        return None


def _is_locked(path: Path) -> bool | None:
    """Whether some process holds the file's lock; None where the kernel does not tell."""
    try:
        inode = os.stat(path).st_ino
        held = Path("/proc/locks").read_text()
    except OSError:
        return None if path.exists() else False
    return re.search(rf"FLOCK\s.*:{inode} ", held) is not None
