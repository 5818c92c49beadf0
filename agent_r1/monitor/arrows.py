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
Where a row stands is one number, its place: that of its batch in bytes, times 64, plus the row.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from agent_r1.errors import DataError
from agent_r1.monitor.appending import AppendOnly
from agent_r1.monitor.jsonl import decode, encode
from agent_r1.monitor.records import Stored, encode_shell, json_numbers, with_loss_mask
from agent_r1.types import Turn

BATCH_ROWS = 64
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


def record_of(batch: pa.RecordBatch, row: int, path: Path) -> dict[str, Any]:
    """One row as the object of a line of ``trajectories.jsonl``."""
    record = decode(batch["record"][row].as_py(), f"{path}, a record")
    ids = batch["ids"][row].values.to_pylist()
    logprobs = (batch["logprobs"][row].values or pa.array([], pa.float32())).to_pylist()
    at = told = 0
    for turn in record["turns"]:
        for name in _ID_LISTS:
            if turn[name] is not None:
                count = turn[name]
                turn[name] = ids[at : at + count]
                at += count
        count = len(turn["token_ids"])
        if turn["logprobs"] is True:
            turn["logprobs"] = json_numbers(logprobs[told : told + count])
        told += count
    return with_loss_mask(record)


# --- writing -----------------------------------------------------------------------------


def _parts(rows: Sequence[Stored]) -> Iterator[list[Stored]]:
    """Rows by batches: none larger than its bounds, and one step in each."""
    part: list[Stored] = []
    tokens = 0
    for row in rows:
        turns = row.trajectory.turns
        size = len(turns[-1].next_prompt_ids) if turns else 0
        full = len(part) == BATCH_ROWS or tokens + size > BATCH_TOKENS
        if part and (full or row.step != part[0].step):
            yield part
            part, tokens = [], 0
        part.append(row)
        tokens += size
    if part:
        yield part


def _batch(rows: Sequence[Stored]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for trajectory, step, split in rows:
        shell = encode_shell(trajectory, step=step, split=split)
        tokens = _Tokens()
        for turn, told in zip(trajectory.turns, shell["turns"], strict=True):
            tokens.add(turn, told)
        for name in ("step", "split", "id", "group_id", "index", "outcome"):
            columns[name].append(_unicode(shell[name]))
        columns["task_id"].append(_unicode(trajectory.task.id))
        columns["data_source"].append(_unicode(trajectory.task.data_source))
        columns["reward"].append(None if trajectory.reward is None else trajectory.reward.value)
        columns["record"].append(encode(shell))
        for name in ("ids", "mask", "logprobs", "versions"):
            columns[name].append(tokens.column(name))
    return pa.record_batch(
        [list_array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA
    )


class _Tokens:
    """The columns of tokens of one trajectory, turn by turn."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Any]] = {"ids": [], "mask": [], "logprobs": [], "versions": []}
        self._known = True

    def add(self, turn: Turn, told: dict[str, Any]) -> None:
        """Take the lists of a turn; what is told of it keeps their lengths."""
        completion, parts = turn.completion, self._parts
        prompt = turn.prompt_ids if told["prompt_ids"] is not None else ()
        for ids, mine in ((prompt, 0), (completion.token_ids, 1), (turn.observation_ids, 0)):
            parts["ids"].append(np.array(ids, np.int32))
            parts["mask"].append(np.full(len(ids), mine, np.int8))
        if told["prompt_ids"] is not None:
            told["prompt_ids"] = len(prompt)
        told["token_ids"] = len(completion.token_ids)
        told["observation_ids"] = len(turn.observation_ids)
        parts["versions"].append(_spread(completion.versions, len(completion.token_ids)))
        exact = _float32(completion.logprobs)
        if exact is None:
            exact = np.full(len(completion.token_ids), np.nan, np.float32)
            told["logprobs"] = json_numbers(completion.logprobs)
            self._known = self._known and completion.logprobs is not None
        else:
            told["logprobs"] = True
        parts["logprobs"].append(exact)

    def column(self, name: str) -> Any:
        if name == "logprobs" and not self._known:
            return None
        return np.concatenate(self._parts[name]) if self._parts[name] else np.zeros(0)


def _unicode(value: Any) -> Any:
    """Halves of surrogate pairs are question marks in the columns; ``record`` has them."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def list_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """A column of plain values or of numpy arrays.

    Arrow's own conversion of nested lists visits every number; this one copies them.
    """
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    lengths = [0 if value is None else len(value) for value in values]
    offsets = pa.array(np.cumsum([0, *lengths]), pa.int32())
    kept = [value for value in values if value is not None]
    flat = np.concatenate(kept) if kept else np.zeros(0)
    missing = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(
        offsets, pa.array(flat.astype(kind.value_type.to_pandas_dtype())), mask=missing
    )


def _float32(logprobs: tuple[float, ...] | None) -> Any:
    """The numbers as float32; None if there are none or one would be rounded."""
    if logprobs is None:
        return None
    wide = np.array(logprobs, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow, wide, equal_nan=True) else None


def _spread(versions: Sequence[tuple[int, int]], length: int) -> Any:
    """The version of every token."""
    firsts = [first for first, _ in versions] + [length]
    return np.repeat(np.array([v for _, v in versions], np.int32), np.diff(firsts))


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
