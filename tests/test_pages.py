"""Pages that are executed from top to bottom: files saved, programs run, outputs compared.

A block that begins with ``# name`` is a file. A ``text`` block is what the Python file before
it prints. A ``console`` block is run by the shell, in the folder of the page's files.
"""

import sys

import pytest
from page_blocks import blocks, run

PAGES = {
    "tools.md": (),
    "games.md": (),
    "context.md": (),
    "mixtures.md": (),
    "mcp.md": ("mcp",),
    "search.md": ("bm25s",),
    "rewards.md": (),
    "agents.md": ("openai", "smolagents"),
    "foreign_environments.md": ("gymnasium", "textarena"),
    "verifiers.md": ("verifiers",),
}
"""Pages below ``docs/``, and the optional packages that each needs."""


SLOW = {"agents.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES]
)
def test_every_block_of_the_page_does_what_it_says(page, tmp_path):
    for package in PAGES[page]:
        pytest.importorskip(package)
    program, executed = None, 0
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.body)
            program = block.file if block.language == "python" else program
        elif block.language == "console":
            run(tmp_path, "sh", "-ec", block.body)
            executed += 1
        else:
            assert block.language == "text", f"a block of no known kind:\n{block.body}"
            assert run(tmp_path, sys.executable, "-W", "error", program) == block.body
            executed += 1
    assert executed
