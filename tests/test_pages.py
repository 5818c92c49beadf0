"""Pages that are executed from top to bottom: files saved, programs run, outputs compared.

A block that begins with ``# name`` is a file. A ``text`` block is what the Python file before
it prints. A ``console`` block is run by the shell, in the folder of the page's files.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {
    "tools.md": (),
    "mcp.md": ("mcp",),
    "search.md": ("bm25s",),
    "agents.md": ("openai", "smolagents"),
}
"""Pages below ``docs/``, and the optional packages that each needs."""


class Block(NamedTuple):
    language: str
    body: str

    @property
    def file(self):
        match = re.match(r"# ([\w.-]+\.\w+)\n", self.body)
        return match[1] if match else None


def blocks(page):
    text = (ROOT / "docs" / page).read_text()
    return [
        Block(*found)
        for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def run(folder, *command):
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
