"""``tokens.arrows``: what an update saw of every token that it trained on.

An Arrow stream as ``trajectories.arrows`` is (:mod:`.arrows`), one row a trajectory. The lists
have a number for each token that the model wrote, turn after turn, in half precision:

    step         of the update
    id           of the trajectory
    advantages   NaN where a token was not trained on
    differences  the engine's log-probability of the token minus the trainer's, in nats; NaN
                 where the trainer's was not computed by the weights before the update
    entropies    of the distribution it was drawn from, in nats, as the trainer computes it
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from agent_r1.errors import DataError
from agent_r1.monitor.arrows import BatchFile, Message, full_batches, messages, readable

TOKENS_FILE = "tokens.arrows"
_NUMBERS = pa.list_(pa.float16())
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("id", pa.string()),
        ("advantages", _NUMBERS),
        ("differences", _NUMBERS),
        ("entropies", _NUMBERS),
    ],
    metadata={"agent_r1.format": "1"},
)
_ARRAYS = ("advantages", "differences", "entropies")


@dataclass(frozen=True, slots=True)
class TokenRecords:
    """Trajectories of one update, one after the other.

    ``counts`` says how many tokens the model wrote in each, and the arrays ``[sum(counts)]``
    have a number for every one of them.
    """

    ids: Sequence[str]
    counts: Sequence[int]
    advantages: np.ndarray[Any, Any]
    differences: np.ndarray[Any, Any]
    entropies: np.ndarray[Any, Any]


class TokenFile(BatchFile):
    """That of a run, open for appending."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / TOKENS_FILE, SCHEMA)

    def append(self, updates: Sequence[tuple[int, TokenRecords]]) -> None:
        """Write the records of some steps: all of them, or none and ``OSError``."""
        self.write(batch for step, records in updates for batch in _batches(step, records))


def _batches(step: int, records: TokenRecords) -> Iterator[pa.RecordBatch]:
    ends = pa.array(np.cumsum([0, *records.counts]), pa.int32())
    with np.errstate(over="ignore"):
        flat = [getattr(records, name).astype(np.float16) for name in _ARRAYS]
    arrays = [pa.ListArray.from_arrays(ends, pa.array(numbers)) for numbers in flat]
    steps = pa.repeat(pa.scalar(step, pa.int32()), len(records.ids))
    columns = [steps, pa.array(map(readable, records.ids), pa.string()), *arrays]
    whole = pa.record_batch(columns, schema=SCHEMA)
    for rows in full_batches(records.counts):
        yield whole.slice(rows.start, len(rows))


class TokenFinder:
    """Finds the row of a trajectory in a file that grows. Safe to use from threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENS_FILE
        self._lock = Lock()
        self._messages: list[Message] = []

    def find(
        self, trajectory: str, first: int, last: int
    ) -> dict[str, np.ndarray[Any, Any]] | None:
        """The arrays of a trajectory that was trained on between two steps; None: it was not."""
        for anew in (False, True):  # a run that resumed may have cut the file and gone on since
            with suppress(OSError, DataError, pa.ArrowInvalid, StopIteration):
                arrays = self._search(self._refreshed(anew), trajectory, first, last)
                if arrays is not None:
                    return arrays
        return None

    def _search(
        self, found: Sequence[Message], trajectory: str, first: int, last: int
    ) -> dict[str, np.ndarray[Any, Any]] | None:
        for at in range(bisect_left(found, first, key=lambda message: message.step), len(found)):
            batch = found[at].read("step", "id")
            if batch["step"][0].as_py() > last:
                return None
            ids = batch["id"].to_pylist()
            if (known := readable(trajectory)) in ids:
                return _arrays(found[at].read(), ids.index(known))
        return None

    def _refreshed(self, anew: bool) -> Sequence[Message]:
        with self._lock:
            known = [] if anew else self._messages
            end = known[-1].end if known else 0
            self._messages = [*known, *messages(self._path, end, SCHEMA)]
            return self._messages


def _arrays(batch: pa.RecordBatch, row: int) -> dict[str, np.ndarray[Any, Any]]:
    return {name: batch[name][row].values.to_numpy(False) for name in _ARRAYS}
