"""The run folder: complete, resumable, and no reason for a run to fail."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agent_r1.config import Config, load_config
from agent_r1.errors import ConfigError
from agent_r1.monitor import RunFolder, load_metrics, load_trajectories
from agent_r1.monitor.arrows import ArrowFile
from agent_r1.monitor.console import LiveDisplay
from agent_r1.monitor.jsonl import JsonlFile
from agent_r1.monitor.loggers import BackgroundLogger
from agent_r1.monitor.records import read_stored, trajectories_file
from agent_r1.monitor.run import archive
from agent_r1.testing import MemoryLogger, make_trajectory


class Told:
    """A display that keeps what it is told."""

    def __init__(self):
        self.messages, self.lines, self.ended = [], [], False

    def begin(self, title, where):
        self.title = title

    def expect(self, total_steps):
        self.total_steps = total_steps

    def announce(self, message):
        self.messages.append(message)

    def progress(self, label, total):
        return lambda done: None

    def sample(self, trajectory):
        self.sampled = trajectory

    def log(self, metrics, step):
        self.lines.append((step, dict(metrics)))

    def end(self):
        self.ended = True


def configured(path, **trainer):
    return Config(trainer={"default_local_dir": str(path), "logger": (), **trainer})


def numbered(i):
    return dataclasses.replace(make_trajectory([str(i)]), group_id=f"g{i}")


def play(run, steps):
    for step in steps:
        run.store([numbered(step), numbered(100 + step)], step=step)
        run.store_validation([numbered(200 + step)], step=step)
        run.log({"loss": 1 / step}, step=step)


def contents(path):
    metrics = load_metrics(path / "metrics.jsonl")
    return metrics, list(read_stored(path / "trajectories.jsonl"))


def test_a_run_leaves_everything_behind(tmp_path):
    config = configured(tmp_path / "run", seed=7)
    with RunFolder.open(config) as run:
        play(run, [1, 2])
        assert run.checkpoints == tmp_path / "run" / "checkpoints"
    folder = tmp_path / "run"
    assert load_config(folder / "config.yaml", environ={}) == config
    metrics, stored = contents(folder)
    assert metrics == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert [(s.step, s.split) for s in stored] == [
        (1, "train"),
        (1, "train"),
        (1, "val"),
        (2, "train"),
        (2, "train"),
        (2, "val"),
    ]
    assert next(load_trajectories(folder / "trajectories.jsonl")) == numbered(1)


def test_run_json_says_where_the_run_came_from(tmp_path):
    with RunFolder.open(configured(tmp_path, seed=7)):
        pass
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seeds"] == {"trainer.seed": 7}
    assert record["packages"]["torch"] and record["python"] and record["agent_r1"]
    assert record["hardware"]["cpu_cores"] >= 1 and record["hardware"]["memory_bytes"] > 0
    assert set(record["git"] or {"revision", "uncommitted_changes"}) == {
        "revision",
        "uncommitted_changes",
    }
    assert record["command"] == sys.argv
    (session,) = record["sessions"]
    assert session["outcome"] == "finished" and session["ended"] >= session["started"]


@pytest.mark.parametrize("form", ["arrow", "jsonl"])
@pytest.mark.parametrize("killed_at", [1, 2, 3, 4])
def test_after_a_kill_and_resume_the_files_are_those_of_an_uninterrupted_run(
    tmp_path, killed_at, form
):
    """Checkpoint after step 2; whatever came later is repeated, torn lines included."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with RunFolder.open(configured(whole, trajectory_file=form)) as run:
        play(run, [1, 2, 3, 4])
    run = RunFolder.open(configured(killed, trajectory_file=form))
    play(run, range(1, killed_at + 1))
    run.close()
    (killed / "checkpoints" / "step-000002").mkdir(parents=True)
    stored = trajectories_file(killed)
    for file, torn in (
        (killed / "metrics.jsonl", b'{"format":1,"step":3,"split":"tr'),
        (stored, stored.read_bytes()[-700:-300] if form == "arrow" else b'{"step":3,"'),
    ):
        with file.open("ab") as end:
            end.write(torn)
    with RunFolder.open(configured(killed)) as run:
        run.rewind(min(2, killed_at))
        play(run, range(min(2, killed_at) + 1, 5))
    assert contents(killed) == contents(whole)
    sessions = json.loads((killed / "run.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, min(2, killed_at)]


def test_the_first_metrics_of_a_sitting_replace_those_of_the_same_step(tmp_path):
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    for value in (1.0, 2.0):
        with RunFolder.open(configured(tmp_path)) as run:
            run.log({"x": value}, step=1)
            run.log({"x": value}, step=2)
    assert [line["x"] for line in load_metrics(tmp_path / "metrics.jsonl")] == [2.0, 2.0]


@pytest.mark.parametrize("mode", ["disable", "auto"])
def test_a_fresh_start_moves_what_was_there_aside(tmp_path, mode):
    """Without a checkpoint nothing can be continued, so auto starts afresh, too."""
    for _ in range(2):
        with RunFolder.open(configured(tmp_path, resume_mode=mode)) as run:
            play(run, [1])
        if mode == "disable":
            (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 1
    assert len(load_metrics(tmp_path / "earlier" / "001" / "metrics.jsonl")) == 1
    assert (tmp_path / "earlier" / "001" / "checkpoints").exists() == (mode == "disable")


def test_a_folder_without_a_run_has_nothing_to_move(tmp_path):
    assert archive(tmp_path / "none") is None
    (tmp_path / "notes.txt").write_text("mine")
    assert archive(tmp_path) is None


def test_two_processes_cannot_write_to_one_run(tmp_path):
    with RunFolder.open(configured(tmp_path)) as run:
        run.log({"x": 1.0}, step=1)
        with pytest.raises(ConfigError, match=r"another process.*trainer\.experiment_name"):
            RunFolder.open(configured(tmp_path, resume_mode="disable"))
    RunFolder.open(configured(tmp_path)).close()


def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"trainer\.default_local_dir"):
        RunFolder.open(configured(tmp_path / "file" / "run"))


def test_a_full_disk_is_announced_once_and_stops_nothing(tmp_path, monkeypatch):
    told = Told()
    run = RunFolder(tmp_path, Config(), display=told)
    run.log({"x": 1.0}, step=1)

    def full(self, records):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonlFile, "append", full)
    monkeypatch.setattr(ArrowFile, "append", full)
    for step in (2, 3):
        run.store([numbered(1)], step=step)
        run.log({"x": 1.0}, step=step)
    monkeypatch.undo()
    run.log({"x": 4.0}, step=4)
    run.close()
    assert len(told.messages) == 2
    assert all("No space left" in m and "Training goes on" in m for m in told.messages)
    assert [line["step"] for line in load_metrics(tmp_path / "metrics.jsonl")] == [1, 4]


def test_loggers_and_display_get_what_the_files_get(tmp_path):
    memory, told = MemoryLogger(), Told()
    logger = BackgroundLogger("memory", memory, told.announce)
    run = RunFolder(
        tmp_path,
        Config(),
        loggers=[logger],
        display=told,
        project="p",
        experiment="e",
        shown_generations=1,
    )
    run.expect(9)
    run.log({"x": 1}, step=1)
    run.store_validation([numbered(1), numbered(2)], step=1)
    run.close()
    assert memory.metrics == told.lines == [(1, {"x": 1.0})]
    assert memory.trajectories == [(1, (numbered(1),))]
    assert memory.closed and told.ended and told.total_steps == 9
    assert (memory.info.project, memory.info.experiment, memory.info.path) == ("p", "e", tmp_path)
    assert memory.info.config["trainer"]["seed"] == 0


def test_the_id_of_a_run_survives_a_resume(tmp_path):
    ids = set()
    for _ in range(2):
        memory = MemoryLogger()
        logger = BackgroundLogger("memory", memory, lambda message: None)
        RunFolder(tmp_path, Config(), loggers=[logger]).close()
        ids.add(memory.info.run_id)
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")]
)
def test_how_a_sitting_ended_is_recorded(tmp_path, error, outcome):
    with pytest.raises(error), RunFolder.open(configured(tmp_path)):
        raise error
    assert json.loads((tmp_path / "run.json").read_text())["sessions"][0]["outcome"] == outcome


def test_numbers_that_json_lacks_come_back(tmp_path):
    with RunFolder.open(configured(tmp_path)) as run:
        run.log({"loss": float("nan"), "x": float("inf")}, step=1)
    (line,) = load_metrics(tmp_path / "metrics.jsonl")
    assert line["loss"] != line["loss"] and line["x"] == float("inf")


def test_a_killed_process_leaves_whole_lines(tmp_path):
    """SIGKILL in the middle of writing: every line but an unfinished last one is there."""
    code = (
        "import os, signal, sys, threading\n"
        "from agent_r1.config import Config\n"
        "from agent_r1.monitor import RunFolder\n"
        "from agent_r1.testing import make_trajectory\n"
        "from pathlib import Path\n"
        f"run = RunFolder(Path({str(tmp_path)!r}), Config())\n"
        "for step in range(1, 100000):\n"
        "    run.store([make_trajectory(['x' * 500])] * 5, step=step)\n"
        "    run.log({'x': 1.0}, step=step)\n"
        "    if step == 20: threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    logged = [int(line["step"]) for line in load_metrics(tmp_path / "metrics.jsonl")]
    assert logged == list(range(1, len(logged) + 1)) and len(logged) >= 20
    stored = [s.step for s in read_stored(tmp_path / "trajectories.jsonl")]
    assert len(stored) >= 5 * len(logged)


def test_importing_the_monitor_imports_nothing_heavy():
    code = (
        "import sys, agent_r1.monitor\n"
        "print({'torch', 'matplotlib', 'wandb', 'tensorboard', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_message_may_come_from_a_signal_handler(tmp_path):
    """Announcing takes no lock and re-enters no buffer that the interrupted code may hold."""
    with Path(os.devnull).open("w") as nowhere:
        display = LiveDisplay(Console(file=nowhere, force_terminal=True))
        run = RunFolder(tmp_path, Config(), display=display)
        previous = signal.signal(signal.SIGALRM, lambda *_: run.announce("stopping"))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for step in range(1, 200):
                run.log({"x": 1.0}, step=step)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            run.close()
    assert len(load_metrics(tmp_path / "metrics.jsonl")) == 199


def test_what_looks_wrong_is_announced_once_and_a_resume_remembers_it(tmp_path):
    healthy, collapsed = {"actor/entropy": 1.0}, {"actor/entropy": 0.05}
    before, after = Told(), Told()
    with RunFolder(tmp_path, Config(), display=before) as run:
        for step in range(1, 9):
            run.log(healthy if step <= 5 else collapsed, step=step)
    # of the five steps 4 to 8 three have collapsed
    assert [m.split(": ")[:2] for m in before.messages] == [["step 8", "entropy collapse"]]
    with RunFolder(tmp_path, Config(), display=after) as run:
        run.rewind(7)
        for step in (8, 9):
            run.log(collapsed, step=step)
    assert [m.split(": ")[:2] for m in after.messages[1:]] == [["step 8", "entropy collapse"]]
