"""The code blocks of a page, and running what is in them as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    language: str
    body: str

    @property
    def file(self):
        """The name of the file that the block is, if its first line is ``# name``."""
        match = re.match(r"# ([\w.-]+\.\w+)\n", self.body)
        return match[1] if match else None


def blocks(page):
    """The blocks of a page below ``docs/``, in order."""
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


def run(folder, *command):
    """What a command prints, run in the folder of the page's files."""
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
