"""How tools are used in the course of a run: figures worked by hand."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from agent_r1.cli import cli
from agent_r1.config import Config
from agent_r1.errors import DataError
from agent_r1.monitor import RunFolder
from agent_r1.monitor.behaviour import PANELS, behaviour
from agent_r1.testing import make_trajectory
from agent_r1.types import Reward

TWO_LINES = "<code>\nx = 1\n\nprint(x)\n</code>"  # 29 characters, which are its tokens


def scored(turns, value, **more):
    return replace(make_trajectory(turns, **more), reward=Reward(value, {"accuracy": value}))


@pytest.fixture
def run(tmp_path):
    right = scored([(TWO_LINES, "1"), "1"], 1.0)
    wrong = scored(["Hm.", ("<code>1</code>", "1"), "2"], 0.0, calls=[[], [True, False], []])
    plain = scored(["no tool"], 0.0)
    unscored = replace(plain, reward=None, error="none")
    with RunFolder(tmp_path / "run", Config()) as folder:
        folder.store([right, wrong, plain, unscored], step=1)
        folder.store_validation([right], step=1)
        folder.store([plain], step=2)
    return tmp_path / "run"


def test_the_figures_of_a_step(run):
    first, second = behaviour(run)
    length = len(TWO_LINES)
    assert first == pytest.approx(
        {
            "step": 1,
            "success": 1 / 3,
            "length": (length + 1 + 18 + 7 + 7) / 4,
            "share": 2 / 4,
            "lines": (2 + 1) / 2,
            "successes": (1 + 1 + 0 + 0) / 4,
            "pass_right": 1.0,
            "pass_wrong": 1 / 2,
            "place": (length / (length + 1) + 17 / 18) / 2,
        }
    )
    assert second == {"step": 2, "success": 0, "length": 7, "share": 0, "successes": 0}
    assert set(first) == {"step", *PANELS}


def test_the_command_draws_them(run, tmp_path):
    target = tmp_path / "tools.svg"
    done = CliRunner().invoke(cli, ["plot", str(run), "--behaviour", "--out", str(target)])
    assert done.exit_code == 0, done.output
    assert "Lines of a program" in done.output and "<svg" in target.read_text()
    both = CliRunner().invoke(cli, ["plot", str(run), "--behaviour", "--metrics", "x"])
    assert both.exit_code == 2 and "exclude each other" in both.output


def test_a_run_that_has_not_trained_has_nothing_to_draw(tmp_path):
    with RunFolder(tmp_path / "new", Config()) as folder:
        folder.store_validation([make_trajectory(["x"])], step=0)
    with pytest.raises(DataError, match="no trajectories of training"):
        behaviour(tmp_path / "new")
