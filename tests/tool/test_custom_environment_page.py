"""The page on own environments, executed from top to bottom."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "custom_environment.md"


class Block(NamedTuple):
    language: str
    body: str

    @property
    def file(self):
        match = re.match(r"# (\w+\.py)\n", self.body)
        return match[1] if match else None


def blocks():
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, as a reader would have saved them."""
    folder = tmp_path_factory.mktemp("page")
    for block in blocks():
        if block.file:
            (folder / block.file).write_text(block.body)
    return folder


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


def test_tool_environment_and_reward_take_thirty_lines():
    shop = next(block for block in blocks() if block.file == "shop.py").body
    start, end = shop.index("class PriceList"), shop.index("def customers")
    lines = [line for line in shop[start:end].splitlines() if line.strip()]
    assert len(lines) <= 30


def test_every_block_is_of_a_kind_that_this_test_knows():
    kinds = [(block.language, bool(block.file)) for block in blocks()]
    assert set(kinds) == {("python", True), ("text", False), ("console", False)}


def test_what_the_page_says_a_program_prints_is_what_it_prints(folder):
    page = blocks()
    shown = [
        (block.file, output.body) for block, output in pairwise(page) if output.language == "text"
    ]
    assert [file for file, _ in shown] == ["try_env.py", "try_loop.py"]
    for file, output in shown:
        assert run(folder, sys.executable, "-W", "error", file) == output


def test_the_environment_with_a_state_keeps_its_contract(folder):
    check = (
        "from agent_r1.testing import check_tool_env\n"
        "from basket import Basket\n"
        "print(check_tool_env(Basket(), ['an apple']).steps)"
    )
    assert int(run(folder, sys.executable, "-W", "error", "-c", check)) == 11


def test_the_training_command_trains(folder):
    run(folder, sys.executable, "make_model.py")
    (command,) = [block.body for block in blocks() if block.language == "console"]
    run(folder, "sh", "-ec", command)
    runs = folder / "runs" / "shop"
    lines = (runs / "trajectories.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 8 * 4 + 2 * 16  # two steps, and validation before and after
    assert all(json.loads(line)["outcome"] in ("finished", "length") for line in lines)
    assert list((runs / "checkpoints").iterdir())
