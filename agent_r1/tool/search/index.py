"""Indices over passages: BM25 by ``bm25s``, and vectors of an embedder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from agent_r1.errors import ConfigError, ToolError
from agent_r1.registry import import_path
from agent_r1.tool.search.corpus import Passage, read_corpus

Embed = Callable[[list[str]], Any]
"""Texts to vectors ``[N, D]``."""


class SearchIndex(Protocol):
    """Finds passages. Called from many threads at once."""

    def search(self, query: str, k: int) -> list[Passage]:
        """At most ``k`` passages, the best first; none that has nothing to do with the query."""


def open_index(
    corpus: str,
    method: Literal["bm25", "dense"] = "bm25",
    embedder: str | None = None,
    cache_dir: str | None = None,
) -> SearchIndex:
    """The index over a corpus file, from the cache if it was built before.

    Raises:
        ConfigError: the corpus cannot be read, a package is missing, or the method is none.
    """
    path = Path(corpus).expanduser().resolve()
    passages = read_corpus(path)
    if not passages:
        raise ConfigError(f"the corpus {path} has no passages")
    folder = _cache(cache_dir) / f"{method}-{_digest(path, embedder)}"
    if method == "bm25":
        return Bm25Index.open(passages, folder)
    if method == "dense":
        if embedder is None:
            raise ConfigError(
                "search with method: dense needs an embedder (a folder or a function)"
            )
        return DenseIndex.open(passages, _embedder(embedder), folder)
    raise ConfigError(f"search knows no method {method!r}; there are bm25 and dense")


def _cache(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "agent_r1" / "search"


def _digest(path: Path, *settings: object) -> str:
    """A name for an index that changes with the corpus' content and with the settings."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:24]


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder under another name and rename it; whoever comes second loses nothing."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        part.mkdir(parents=True)
        write(part)
        part.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise ToolError(f"the search index cannot be written to {folder}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Bm25Index:
    """Okapi BM25 (Lucene's variant) over lower-case words without English stop words."""

    def __init__(self, passages: Sequence[Passage], retriever: Any) -> None:
        self._passages = passages
        self._retriever = retriever

    @classmethod
    def open(cls, passages: Sequence[Passage], folder: Path) -> Bm25Index:
        bm25s = _bm25s()
        if not folder.is_dir():
            retriever = bm25s.BM25(backend="numpy")
            tokens = bm25s.tokenize(
                [p.content for p in passages], stopwords="en", show_progress=False
            )
            retriever.index(tokens, show_progress=False)
            _whole(folder, lambda part: retriever.save(part))
        loaded = bm25s.BM25.load(folder, mmap=len(passages) > 1_000_000, load_corpus=False)
        return cls(passages, loaded)

    def search(self, query: str, k: int) -> list[Passage]:
        tokens = _bm25s().tokenize(query, stopwords="en", return_ids=False, show_progress=False)
        known = [[t for t in tokens[0] if t in self._retriever.vocab_dict]]
        if not known[0]:
            return []
        found, scores = self._retriever.retrieve(
            known, k=min(k, len(self._passages)), show_progress=False
        )
        pairs = zip(found[0].tolist(), scores[0].tolist(), strict=True)
        return [self._passages[int(i)] for i, score in pairs if score > 0]


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ConfigError(
            "the search tool needs the bm25s package: pip install 'agent-r1[search]'"
        ) from error
    return bm25s


class DenseIndex:
    """The passages whose vectors have the largest cosine with the query's, exactly.

    With ``faiss`` installed its flat index is searched, otherwise numpy's product.
    """

    def __init__(
        self, passages: Sequence[Passage], embed: Embed, vectors: NDArray[np.float32]
    ) -> None:
        self._passages = passages
        self._embed = embed
        self._lock = threading.Lock()
        self._best = _searcher(vectors)

    @classmethod
    def open(cls, passages: Sequence[Passage], embed: Embed, folder: Path) -> DenseIndex:
        if not folder.is_dir():
            vectors = _unit(embed([p.content for p in passages]), len(passages))
            _whole(folder, lambda part: np.save(part / "vectors.npy", vectors))
        return cls(passages, embed, np.load(folder / "vectors.npy"))

    def search(self, query: str, k: int) -> list[Passage]:
        with self._lock:  # one embedder, many threads
            vector = _unit(self._embed([query]), 1)
        return [self._passages[i] for i in self._best(vector, min(k, len(self._passages)))]


def _searcher(vectors: NDArray[np.float32]) -> Callable[[NDArray[np.float32], int], list[int]]:
    try:
        import faiss
    except ImportError:
        faiss = None
    if faiss is None:

        def by_numpy(query: NDArray[np.float32], k: int) -> list[int]:
            scores = vectors @ query[0]
            return [int(i) for i in np.argsort(-scores, kind="stable")[:k]]

        return by_numpy
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def by_faiss(query: NDArray[np.float32], k: int) -> list[int]:
        return [int(i) for i in index.search(query, k)[1][0] if i >= 0]

    return by_faiss


def _unit(vectors: Any, count: int) -> NDArray[np.float32]:
    """Vectors of length 1, ``[N, D]``."""
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2 or len(found) != count:
        raise ConfigError(
            f"the embedder returned an array of shape {found.shape} for {count} texts; it must be "
            "(texts, dimensions)"
        )
    lengths: NDArray[np.float32] = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(lengths, 1e-12), dtype=np.float32)


def _embedder(given: str) -> Embed:
    if ":" in given:
        embed: Embed = import_path(given)
        return embed
    return _encoder(given)


def _encoder(folder: str) -> Embed:
    """Mean of the last hidden states over the tokens of each text (E5, GTE, MiniLM and others)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the embedder {folder} is no folder of an encoder: {error}") from error

    def embed(texts: list[str]) -> NDArray[np.float32]:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                inputs = tokenizer(
                    texts[start : start + 64],
                    padding=True,
                    truncation=True,
                    max_length=min(int(getattr(tokenizer, "model_max_length", 512)), 512),
                    return_tensors="pt",
                )
                hidden = model(**inputs).last_hidden_state
                mask = inputs["attention_mask"].unsqueeze(-1)
                rows.append((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))
        found: NDArray[np.float32] = torch.cat(rows).float().numpy()
        return found

    return embed
