"""The page on own environments, executed from top to bottom."""

import sys
from itertools import pairwise

import pytest
from page_blocks import blocks, run

from agent_r1.monitor import load_trajectories
from agent_r1.types import Outcome

PAGE = "tutorials/custom_environment.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files, as a reader would have saved them."""
    folder = tmp_path_factory.mktemp("page")
    for block in blocks(PAGE):
        if block.file:
            (folder / block.file).write_text(block.body)
    return folder


def test_tool_environment_and_reward_take_thirty_lines():
    shop = next(block for block in blocks(PAGE) if block.file == "shop.py").body
    start, end = shop.index("class PriceList"), shop.index("def customers")
    lines = [line for line in shop[start:end].splitlines() if line.strip()]
    assert len(lines) <= 30


def test_every_block_is_of_a_kind_that_this_test_knows():
    kinds = [(block.language, bool(block.file)) for block in blocks(PAGE)]
    assert set(kinds) == {("python", True), ("text", False), ("console", False)}


def test_what_the_page_says_a_program_prints_is_what_it_prints(folder):
    page = blocks(PAGE)
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
    (command,) = [block.body for block in blocks(PAGE) if block.language == "console"]
    run(folder, "sh", "-ec", command)
    runs = folder / "runs" / "shop"
    stored = list(load_trajectories(runs))
    assert len(stored) == 2 * 8 * 4 + 2 * 16  # two steps, and validation before and after
    assert {t.outcome for t in stored} <= {Outcome.FINISHED, Outcome.LENGTH}
    assert list((runs / "checkpoints").iterdir())
