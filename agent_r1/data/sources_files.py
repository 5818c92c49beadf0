"""Rows of data files, with the number by which a person finds each in the file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent_r1.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``number`` counts from 1: the line of a text file, the row of a table."""

    number: int
    values: Mapping[str, Any] | None
    error: str = ""
    """Why there are no values."""


def read_rows(path: Path) -> Iterator[Row]:
    """All rows of a JSONL, JSON, CSV, TSV or Parquet file (the text ones also ``.gz``).

    A row that cannot be read comes with ``error`` set. Empty lines are no rows.

    Raises:
        DataError: there is no such file, its format is unknown, or the file as a whole
            cannot be read.
    """
    reader = require_file(path)
    try:
        yield from reader(path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def require_file(path: Path) -> Callable[[Path], Iterator[Row]]:
    """What reads this file.

    Raises:
        DataError: there is no such file, or its format is unknown.
    """
    if not path.is_file():
        raise DataError(f"there is no data file {path}{_similar(path)}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else path.suffix.lower()
    reader = _READERS.get(kind)
    if reader is None:
        raise DataError(f"{path}: unknown data format {kind!r}; known: {', '.join(_READERS)}")
    return reader


def _similar(path: Path) -> str:
    """What else lies there, if that helps."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent.absolute()}"
    there = sorted(p.name for p in path.parent.iterdir() if _READERS.keys() & set(p.suffixes))
    return f"; the folder has: {', '.join(there[:10])}" if there else ""


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_row(number, line)


def _json_row(number: int, line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number, None, f"no valid JSON: {error}")
    return _object_row(number, values)


def _object_row(number: int, values: object) -> Row:
    if isinstance(values, dict):
        return Row(number, values)
    return Row(number, None, f"a JSON object expected, not {type(values).__name__}")


def _json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        try:
            whole = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} is no valid JSON: {error}. One object per line is called .jsonl"
            ) from error
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if not isinstance(whole, list):
        raise DataError(f"{path} must hold a list of objects, or an object with a list 'data'")
    for number, values in enumerate(whole, 1):
        yield _object_row(number, values)


def _table(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        with _open(path) as file:
            for values in (reader := csv.DictReader(file, delimiter=delimiter)):
                number = reader.line_num
                if None in values or None in values.values():
                    width = len(reader.fieldnames or ())
                    yield Row(number, None, f"not as many fields as the header ({width})")
                else:
                    yield Row(number, values)

    return read


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _table(","),
    ".tsv": _table("\t"),
}
