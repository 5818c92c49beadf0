"""Passages of a corpus file, in the formats that retrieval corpora are published in."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent_r1.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that is found as a whole."""

    title: str
    text: str

    @property
    def content(self) -> str:
        """What is searched: title and text."""
        return f"{self.title}\n{self.text}" if self.title else self.text


def read_corpus(path: Path | str) -> list[Passage]:
    """The passages of a JSONL, JSON (a list) or parquet file; the first two may be gzipped.

    A row has ``text`` (also ``paragraph_text``, ``passage``) and perhaps ``title``; or
    ``contents`` alone, whose first line is the title, as in the corpora of FlashRAG,
    Pyserini and Search-R1.

    Raises:
        ConfigError: the file cannot be read, or a row has no text; names the row.
    """
    path = Path(path).expanduser()
    try:
        return [_passage(path, number, row) for number, row in enumerate(_rows(path), 1)]
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the corpus {path} cannot be read: {error}") from error


def _rows(path: Path) -> Iterator[Any]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with _opened(path) as file:
        if name.endswith(".json"):
            loaded = json.load(file)
            yield from loaded if isinstance(loaded, list) else [loaded]
            return
        for line in file:
            if line.strip():
                yield json.loads(line)


def _opened(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _passage(path: Path, number: int, row: Any) -> Passage:
    if isinstance(row, Mapping):
        for key in ("text", "paragraph_text", "passage"):
            if isinstance(row.get(key), str):
                return Passage(str(row.get("title") or "").strip(), row[key].strip())
        if isinstance(row.get("contents"), str):
            title, _, text = row["contents"].partition("\n")
            return Passage(title.strip().strip('"'), text.strip()) if text else Passage("", title)
    raise ConfigError(
        f"row {number} of the corpus {path} has no text: each row needs 'text' (and perhaps "
        "'title'), or 'contents'"
    )
