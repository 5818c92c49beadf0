"""Files of one JSON object per line that survive being killed at any moment.

Every line carries its ``step``. Lines are appended in the order of steps, each batch with
one write, so a kill loses at most an unfinished last line; readers pass over it and the
next writer removes it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent_r1.errors import DataError
from agent_r1.monitor.appending import AppendOnly


class _Stamp(msgspec.Struct):
    step: int


_STAMP = msgspec.json.Decoder(_Stamp)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


class JsonlFile:
    """One such file, open for appending. Not for use by several processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(0o644)
        self._file = AppendOnly(path, _whole_lines(path))

    def append(self, records: Iterable[Any]) -> None:
        """Write records after the last one: all of them, or none and ``OSError``."""
        self._file.write(b"".join(encode(record) + b"\n" for record in records))

    def rewind(self, step: int) -> None:
        """Drop everything after ``step``: what a resumed run is about to repeat."""
        self._file.cut(_end_of_step(self.path, step))

    def close(self) -> None:
        self._file.close()


def encode(record: Any) -> bytes:
    """One line of JSON, without the newline. Numpy values become plain ones."""
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
        return json.dumps(msgspec.to_builtins(record, enc_hook=_plain)).encode()


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a file; an unfinished last line is passed over.

    Raises:
        DataError: the file is missing, or a line before the last is no JSON object.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield decode(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those are written as text, which ``float`` reads."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def decode(line: bytes, where: str) -> dict[str, Any]:
    """The object of one line. ``DataError`` says ``where`` it stands if it is none."""
    try:
        return _OBJECT.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        with contextlib.suppress(ValueError):
            record = json.loads(line)  # knows halves of surrogate pairs
            if isinstance(record, dict):
                return record
        raise DataError(f"{where} is no JSON object: {error}") from error


def _whole_lines(path: Path) -> int:
    """Bytes up to and with the last newline."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - (1 << 16))
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            position = start
    return 0


def _end_of_step(path: Path, step: int) -> int:
    """Bytes up to the first line that is of a later step, or damaged."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            found = _step_of(line)
            if found is None or found > step or not line.endswith(b"\n"):
                break
            end += len(line)
    return end


def _step_of(line: bytes) -> int | None:
    """The step of a line; ``None`` if it is damaged."""
    try:
        return _STAMP.decode(line).step
    except (msgspec.DecodeError, UnicodeDecodeError):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])  # knows halves of surrogate pairs
        return None


def _plain(value: Any) -> Any:
    """What a data set may put into a task and JSON does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            return convert()
    return str(value)


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
