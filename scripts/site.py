"""Hooks of mkdocs: the README is the front page, and links out of docs/ go to the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as index.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point at the repository where a link leaves the pages, or names a folder or a data file."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = (here / target).resolve()
        base = ROOT / "docs"
        if not path.exists() and (ROOT / target).exists():  # the README's own links
            path = ROOT / target
        inside = path.is_relative_to(base) and path.is_file() and path.suffix != ".py"
        if inside or not path.exists():
            return match[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor})"

    return _LINK.sub(outside, markdown)
