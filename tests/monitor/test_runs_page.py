"""The page about run folders shows code that runs and files and metrics that exist."""

import dataclasses
import re
from pathlib import Path

from agent_r1.config import Config
from agent_r1.monitor import RunFolder, rollout_metrics
from agent_r1.testing import make_trajectory
from agent_r1.types import Outcome, Reward

PAGE = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()


def trajectory(value):
    made = make_trajectory([("<code>1</code>", "1"), "answer"])
    return dataclasses.replace(made, reward=Reward(value, {"accuracy": max(value, 0.0)}))


def examples():
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_example_reads_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with RunFolder(Path("run"), Config()) as run:
        batch = [trajectory(1.0), trajectory(-1.0)]
        run.store(batch, step=1)
        run.log(rollout_metrics(batch), step=1)
    example = examples()[0]
    exec(compile(example, "docs/runs.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "1 0.5",
        "<code>1</code>1answer",
        "<code>1</code>answer",
    ]


def test_the_example_finds_trajectories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = make_trajectory([("<code>1/0</code>", "ZeroDivisionError"), "gave up"])
    wrong = dataclasses.replace(wrong, reward=Reward(0.0))
    with RunFolder(Path("run"), Config()) as run:
        run.store([trajectory(1.0), wrong], step=1)
    exec(compile(examples()[1], "docs/runs.md", "exec"), {})
    assert capsys.readouterr().out == "1 task 0.0 gave up\n"


def test_the_example_for_notebooks_reads_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder(Path("run"), Config()) as run:
        batch = [trajectory(1.0), trajectory(-1.0)]
        run.store(batch, step=1)
        run.log(rollout_metrics(batch), step=1)
    names: dict = {}
    exec(compile(examples()[2], "docs/runs.md", "exec"), names)
    assert list(names["rows"]["reward"]) == [1.0, -1.0]


def test_the_example_tells_what_began_to_look_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with RunFolder(Path("run"), Config()) as run:
        for step in range(1, 6):
            run.log({"tool/success": 0.2}, step=step)
    exec(compile(examples()[3], "docs/runs.md", "exec"), {})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("5 tool errors: only 20% of the tool calls succeed.")


def test_the_rollout_metrics_of_the_page_exist():
    batch = [trajectory(1.0), dataclasses.replace(trajectory(0.0), outcome=Outcome.LENGTH)]
    made = set(rollout_metrics(batch))
    table = PAGE.split("## Metrics")[1].split("## Loggers")[0]
    names = re.findall(r"`([a-z_]+/[a-z_/]+)`", table)
    rollout = [
        name
        for name in names
        if name.split("/")[0]
        in ("rollout", "tool", "response_length", "num_turns", "critic", "outcome")
    ]
    assert len(rollout) >= 9
    assert set(rollout) <= made


def test_the_files_of_the_page_are_those_of_a_run(tmp_path):
    with RunFolder(tmp_path, Config()):
        pass
    written = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert all(f"`{name}`" in PAGE for name in written)
