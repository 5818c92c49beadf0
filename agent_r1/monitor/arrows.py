"""``trajectories.arrows``: the trajectories of a run as an Arrow stream, compressed.

A third of the size of JSON lines, and it grows at its end as they do: an IPC stream is a
schema and then record batches, each complete in itself. What a kill leaves unfinished is cut
off by the next writer, and a resumed run cuts back to the end of a step. pyarrow, polars and
DuckDB read the file as it is. (Parquet would be a tenth smaller still, but a file of it exists
only when it is closed; ``docs/results/trajectory_store.md`` has the figures.)

Columns, one row a trajectory:

    step, split, id, group_id, index, task_id, data_source, outcome, reward
    ids       int32    every token: of each turn the prompt (where it does not continue the
                       turn before), what the model wrote, what the environment answered
    mask      int8     1 where the model wrote the token
    logprobs  float32  of the tokens that the model wrote; null where an engine gave none
    versions  int32    of the policy that wrote each of these tokens
    record    the rest as JSON: a line of ``trajectories.jsonl`` (``monitor/records.py``) in
              which each list of ids is its length

A log-probability that is no float32 stays in ``record``, so that nothing is ever rounded.
Where a row stands is one number, its place: that of its batch in bytes, times 256, plus the row.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from agent_r1.errors import DataError
from agent_r1.monitor.appending import AppendOnly
from agent_r1.monitor.jsonl import decode, encode
from agent_r1.monitor.records import (
    Stored,
    TurnShell,
    encode_shell,
    json_numbers,
    with_loss_mask,
)
from agent_r1.types import Turn

BATCH_ROWS = 256
"""Most rows of a batch, and the factor of places."""
BATCH_TOKENS = 1 << 18
"""Tokens after which a batch is full: reading one trajectory decompresses its batch."""

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("split", pa.string()),
        ("id", pa.string()),
        ("group_id", pa.string()),
        ("index", pa.int32()),
        ("task_id", pa.string()),
        ("data_source", pa.string()),
        ("outcome", pa.string()),
        ("reward", pa.float64()),
        ("record", pa.binary()),
        ("ids", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.int8())),
        ("logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())),
    ],
    metadata={"agent_r1.format": "2"},
)
_MARK = b"\xff\xff\xff\xff"
_ID_LISTS = ("prompt_ids", "token_ids", "observation_ids")


class BatchFile:
    """A stream of record batches, open for appending. Not for several processes at once.

    Each batch is of one step, which its column ``step`` tells.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema
        path.touch(0o644)
        size = 0
        for message in messages(path, schema=schema):
            size = message.end
        self._file = AppendOnly(path, size)

    def write(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write batches after the last one: all of them, or none and ``OSError``."""
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1), use_threads=False)
        writer = pa.ipc.new_stream(sink, self._schema, options=options)
        for batch in batches:
            writer.write_batch(batch)
        data: bytes = sink.getvalue().to_pybytes()  # without the mark of an ended stream
        self._file.write(data[len(_head(self._schema)) if self._file.size else 0 :])

    def rewind(self, step: int) -> None:
        """Drop everything after ``step``: what a resumed run is about to repeat."""
        found = list(messages(self.path, schema=self._schema))
        kept = bisect_right(found, step, key=lambda message: message.step)
        if kept < len(found):
            self._file.cut(found[kept].start if kept else 0)

    def close(self) -> None:
        self._file.close()


class ArrowFile(BatchFile):
    """The trajectories of a run, open for appending."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, SCHEMA)

    def append(self, rows: Sequence[Stored]) -> None:
        """Write trajectories after the last one: all of them, or none and ``OSError``."""
        self.write(_batch(part) for part in _parts(rows))


class Message(NamedTuple):
    """One record batch as it stands in a file, from ``start`` to ``end``."""

    path: Path
    start: int
    end: int
    schema: pa.Schema = SCHEMA

    def bytes(self) -> bytes:
        """Empty or short if the file has been cut back since."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)

    def read(self, *columns: str) -> pa.RecordBatch:
        """The batch, or only some of its columns."""
        return read_batch(self.bytes(), *columns, schema=self.schema)

    @property
    def step(self) -> int:
        """The step that its rows are of."""
        return int(self.read("step").column(0)[0].as_py())


def read_batch(data: bytes, *columns: str, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """The batch of a message, or only some of its columns."""
    fields = [schema.get_field_index(name) for name in columns] or None
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    whole = pa.BufferReader(_head(schema) + data)
    return pa.ipc.open_stream(whole, options=options).read_next_batch()


@cache
def _head(schema: pa.Schema) -> bytes:
    """What a stream of this schema begins with."""
    head: bytes = schema.serialize().to_pybytes()
    return head


def messages(
    path: Path, start: int = 0, schema: pa.Schema = SCHEMA
) -> Generator[Message, None, None]:
    """The whole batches from a byte on; an unfinished last one is passed over.

    Raises:
        DataError: the file is missing, or no file of this format.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = _head(schema)
            if file.read(len(head)) != head[:size]:
                what = "trajectories" if schema is SCHEMA else "this kind"
                raise DataError(f"{path} is no file of {what}, or of another version of Agent-R1")
            at = start or len(head)
            while (length := _length(file, at)) and at + length <= size:
                yield Message(path, at, at + length, schema)
                at += length
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_arrows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, each as the object of a line of ``trajectories.jsonl``."""
    for message in messages(path):
        batch = message.read()
        for row in range(len(batch)):
            yield record_of(batch, row, path)


def record_of(
    batch: pa.RecordBatch, row: int, path: Path, *, arrays: bool = False
) -> dict[str, Any]:
    """One row as the object of a line of ``trajectories.jsonl``.

    ``arrays``: ids and log-probabilities are numpy arrays, and not lists of Python's numbers.
    """
    record = decode(batch["record"][row].as_py(), f"{path}, a record")
    ids = batch["ids"][row].values
    logprobs = batch["logprobs"][row].values or pa.array([], pa.float32())
    ids = ids.to_numpy() if arrays else ids.to_pylist()
    logprobs = logprobs.to_numpy() if arrays else logprobs.to_pylist()
    at = told = 0
    for turn in record["turns"]:
        for name in _ID_LISTS:
            if turn[name] is not None:
                count = turn[name]
                turn[name] = ids[at : at + count]
                at += count
        count = len(turn["token_ids"])
        if turn["logprobs"] is True:
            some = logprobs[told : told + count]
            turn["logprobs"] = some if arrays else json_numbers(some)
        told += count
    return with_loss_mask(record)


# --- writing -----------------------------------------------------------------------------


def full_batches(tokens: Iterable[int]) -> Iterator[range]:
    """Rows by batches, none larger than its bounds. ``tokens`` says how many each row has."""
    start = held = number = 0
    for number, count in enumerate(tokens, start=1):
        row = number - 1
        if row > start and (row - start == BATCH_ROWS or held + count > BATCH_TOKENS):
            yield range(start, row)
            start, held = row, 0
        held += count
    if number > start:
        yield range(start, number)


def _parts(rows: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Rows by batches, with one step in each."""
    for _, same in groupby(rows, key=lambda row: row.step):
        some = list(same)
        for part in full_batches(_last_context(row.trajectory.turns) for row in some):
            yield some[part.start : part.stop]


def _last_context(turns: Sequence[Turn]) -> int:
    if not turns:
        return 0
    last = turns[-1]
    return len(last.prompt_ids) + len(last.completion.token_ids) + len(last.observation_ids)


def _batch(rows: Sequence[Stored]) -> pa.RecordBatch:
    shells = [encode_shell(row.trajectory, step=row.step, split=row.split) for row in rows]
    tokens = _Tokens()
    for row, shell in zip(rows, shells, strict=True):
        tokens.add(row.trajectory.turns, shell.turns)
    columns: dict[str, Any] = tokens.columns() | {
        "step": [shell.step for shell in shells],
        "split": [shell.split for shell in shells],
        "id": [readable(shell.id) for shell in shells],
        "group_id": [readable(shell.group_id) for shell in shells],
        "index": [shell.index for shell in shells],
        "task_id": [readable(shell.task["id"]) for shell in shells],
        "data_source": [readable(shell.task["data_source"]) for shell in shells],
        "outcome": [shell.outcome for shell in shells],
        "reward": [None if shell.reward is None else shell.reward["value"] for shell in shells],
    }
    columns["record"] = [encode(shell) for shell in shells]  # after the tokens were counted
    arrays = []
    for field in SCHEMA:
        column = columns[field.name]
        arrays.append(column if isinstance(column, pa.Array) else pa.array(column, field.type))
    return pa.record_batch(arrays, schema=SCHEMA)


class _Tokens:
    """The columns of tokens of a batch. Numbers are gathered in one list for all rows, because a
    conversion costs as much for ten of them as for a thousand.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._pieces: list[int] = []
        """Lengths of what stands in ``_ids``: of each turn prompt, action, observation."""
        self._logprobs: list[float] = []
        self._versions: list[tuple[int, int]] = []
        """Runs of (version, tokens)."""
        self._ends: list[tuple[int, int, int]] = [(0, 0, 0)]
        """After each row: of all tokens, of log-probabilities, of what the model wrote."""
        self._unknown: list[bool] = []
        self._turns: list[tuple[TurnShell, int, int]] = []

    def add(self, turns: Sequence[Turn], told: Sequence[TurnShell]) -> None:
        """Take the lists of a row's turns; what is told of them keeps their lengths."""
        ids, logprobs, wrote = self._ids, self._logprobs, self._ends[-1][2]
        unknown = False
        for turn, found in zip(turns, told, strict=True):
            completion = turn.completion
            prompt = 0
            if found.prompt_ids is not None:
                ids += turn.prompt_ids
                found.prompt_ids = prompt = len(turn.prompt_ids)
            ids += completion.token_ids
            ids += turn.observation_ids
            found.token_ids = count = len(completion.token_ids)
            found.observation_ids = observed = len(turn.observation_ids)
            self._pieces += (prompt, count, observed)
            wrote += count
            for (first, version), (end, _) in pairwise((*completion.versions, (count, 0))):
                self._versions.append((version, end - first))
            unknown |= completion.logprobs is None
        for turn, found in zip(turns, told, strict=True):
            if unknown:
                found.logprobs = json_numbers(turn.completion.logprobs)
                continue
            found.logprobs, start = True, len(logprobs)
            logprobs += turn.completion.logprobs or ()
            self._turns.append((found, start, len(logprobs)))
        self._ends.append((len(ids), len(logprobs), wrote))
        self._unknown.append(unknown)

    def columns(self) -> dict[str, pa.Array]:
        """The columns; numbers that float32 would round are told instead."""
        wide = np.fromiter(self._logprobs, np.float64, len(self._logprobs))
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float32)
        rounded = (narrow != wide) & ~np.isnan(wide)
        if rounded.any():
            for found, start, end in self._turns:
                if rounded[start:end].any():
                    found.logprobs = json_numbers(self._logprobs[start:end])
                    narrow[start:end] = np.nan
        ids, scored, written = zip(*self._ends, strict=True)
        pieces = np.array(self._pieces, np.intp)
        mine = np.tile(np.array([0, 1, 0], np.int8), len(pieces) // 3)
        runs = np.array(self._versions, np.int32).reshape(-1, 2)
        return {
            "ids": _lists(ids, np.fromiter(self._ids, np.int32, len(self._ids))),
            "mask": _lists(ids, np.repeat(mine, pieces)),
            "logprobs": _lists(scored, narrow, self._unknown),
            "versions": _lists(written, np.repeat(runs[:, 0], runs[:, 1])),
        }


def _lists(ends: Sequence[int], flat: Any, missing: Sequence[bool] | None = None) -> pa.Array:
    mask = None if missing is None else pa.array(missing)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat), mask=mask)


def readable(value: Any) -> Any:
    """Halves of surrogate pairs are question marks in the columns; ``record`` has them."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()


def _length(file: BinaryIO, start: int) -> int:
    """Bytes of the message there; 0 if there is none.

    It is a mark, the length of its header, the header, its body: see "Encapsulated message
    format" of the Arrow columnar format. The header is a flatbuffer, whose fourth field is
    the length of the body.
    """
    file.seek(start)
    prefix = file.read(8)
    if len(prefix) < 8 or prefix[:4] != _MARK:
        return 0
    (header_length,) = struct.unpack("<i", prefix[4:])
    header = file.read(header_length)
    if header_length <= 0 or len(header) < header_length:
        return 0
    try:
        (table,) = struct.unpack_from("<I", header, 0)
        fields = table - struct.unpack_from("<i", header, table)[0]
        (offset,) = struct.unpack_from("<H", header, fields + 4 + 2 * 3)
        body = struct.unpack_from("<q", header, table + offset)[0] if offset else 0
    except struct.error:
        return 0
    return 8 + int(header_length) + int(body)
