"""A search engine over a corpus of passages, as a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from agent_r1.tool.base import BaseTool, ToolResult
from agent_r1.tool.search.corpus import Passage
from agent_r1.tool.search.index import open_index


class SearchTool(BaseTool):
    """Finds the passages of a corpus that fit a query best.

    Args:
        corpus: file of passages; see :func:`agent_r1.tool.search.corpus.read_corpus`.
        k: passages per query.
        method: ``bm25`` compares words, ``dense`` compares the vectors of an embedder.
        embedder: for ``dense``: folder of a transformers encoder, or
            ``package.module:function`` or ``file.py:function`` that takes a list of texts and
            returns an array ``[N, D]``.
        cache_dir: where indices are kept; by default in the user's cache.
        name: what the model calls the tool, such as ``wiki_search``.
        max_passage_length: characters of each passage that are shown.

    The index is built when the tool is made for the first time and read from the cache later.
    Nothing found is a failed call.
    """

    description = "Search a corpus of passages and return those that fit the query best."
    parameters = {  # noqa: RUF012  # a schema, read only
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for, in a few words."}
        },
        "required": ["query"],
        "additionalProperties": False,
    }

    def __init__(
        self,
        corpus: str,
        *,
        k: int = 3,
        method: Literal["bm25", "dense"] = "bm25",
        embedder: str | None = None,
        cache_dir: str | None = None,
        name: str = "search",
        max_passage_length: int = 1000,
    ) -> None:
        self.name = name
        self._k = k
        self._max_length = max_passage_length
        self._index = open_index(corpus, method, embedder, cache_dir)

    def execute(self, args: Mapping[str, Any]) -> ToolResult:
        query = args["query"].strip()
        if not query:
            return ToolResult("Error: the query is empty", False)
        found = self._index.search(query, self._k)
        if not found:
            return ToolResult("Nothing was found. Try other words.", False)
        return ToolResult("\n".join(map(self._shown, range(1, len(found) + 1), found)), True)

    def _shown(self, number: int, passage: Passage) -> str:
        text = passage.text[: self._max_length]
        return f'Doc {number}(Title: "{passage.title}") {text}'
