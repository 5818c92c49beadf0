"""A logger may fail, block or be slow: training does not notice, the person is told once."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent_r1.errors import ConfigError, RegistryError
from agent_r1.monitor import loggers
from agent_r1.monitor.loggers import BackgroundLogger, RunInfo, make_loggers
from agent_r1.testing import MemoryLogger, make_trajectory

INFO = RunInfo(Path("."), "p", "e", "id")


def background(logger, **options):
    told = []
    made = BackgroundLogger("mine", logger, told.append, **options)
    made.start(INFO)
    return made, told


def test_everything_arrives_in_order_before_close_returns():
    memory = MemoryLogger()
    logger, told = background(memory)
    for step in range(100):
        logger.log({"x": float(step)}, step)
    logger.samples([make_trajectory(["a"])], 99)
    logger.close()
    assert memory.series("x") == [float(step) for step in range(100)]
    assert memory.trajectories and memory.closed and told == []


def test_a_logger_that_fails_is_reported_once_and_stops_nothing():
    logger, told = background(MemoryLogger(failure=RuntimeError("quota exceeded")))
    for step in range(10):
        logger.log({}, step)
    logger.close()
    assert len(told) == 1
    assert "logger mine failed (RuntimeError: quota exceeded)" in told[0]
    assert "Training goes on" in told[0]


def test_a_logger_that_recovers_gets_what_comes_later():
    memory = MemoryLogger()
    logger, told = background(memory)
    memory.failure = OSError("offline")
    logger.log({"x": 1.0}, 1)
    while logger._queue.unfinished_tasks and not told:
        time.sleep(0.001)
    memory.failure = None
    logger.log({"x": 2.0}, 2)
    logger.close()
    assert memory.series("x") == [2.0] and len(told) == 1


def test_a_logger_that_cannot_start_is_left_alone():
    class Broken(MemoryLogger):
        def start(self, info):
            raise ConnectionError("no route to host")

    broken = Broken()
    logger, told = background(broken)
    for step in range(50):
        logger.log({}, step)
    logger.close()
    assert broken.metrics == [] and not broken.closed
    assert len(told) == 1 and "nothing will be logged there" in told[0]


class Blocked(MemoryLogger):
    """Hangs in the first call until it is let go."""

    def __init__(self, where):
        super().__init__()
        self.where, self.gate = where, threading.Event()

    def start(self, info):
        if self.where == "start":
            self.gate.wait()
        super().start(info)

    def log(self, metrics, step):
        if self.where == "log":
            self.gate.wait()
        super().log(metrics, step)

    def close(self):
        if self.where == "close":
            self.gate.wait()
        super().close()


@pytest.mark.parametrize("where", ["start", "log", "close"])
def test_a_logger_that_hangs_holds_nobody_up(where):
    blocked = Blocked(where)
    logger, told = background(blocked, capacity=5, patience=0.05)
    for step in range(50):
        logger.log({}, step)
    logger.close()
    blocked.gate.set()
    assert any("did not finish in time" in message for message in told)
    if where != "close":
        assert sum("does not keep up" in message for message in told) == 1
    assert len(told) <= 2


def test_console_and_jsonl_are_no_extra_loggers():
    assert make_loggers(["console", "jsonl"], print) == ()


def test_a_logger_of_ones_own_is_named_by_its_path():
    (logger,) = make_loggers(["agent_r1.testing:MemoryLogger"], lambda message: None)
    logger.close()
    with pytest.raises(RegistryError):
        make_loggers(["agent_r1.testing:NoLogger"], lambda message: None)


def test_a_package_that_is_missing_is_a_configuration_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'agent-r1\[wandb\]'"):
        make_loggers(["wandb"], lambda message: None)


def test_tensorboard_gets_scalars_and_texts(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = []
    (logger,) = make_loggers(["tensorboard"], told.append)
    logger.start(RunInfo(tmp_path, "p", "e", "id"))
    logger.log({"critic/rewards/mean": 0.5}, 3)
    logger.samples([make_trajectory([("code", "output"), "answer"])], 3)
    logger.close()
    assert told == []
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (scalar,) = events.Scalars("critic/rewards/mean")
    assert (scalar.step, scalar.value) == (3, 0.5)
    (text,) = events.Tensors("val/generation_0/text_summary")
    assert text.tensor_proto.string_val == [b"codeoutputanswer"]


class FakeWandb:
    """Stands where the module ``wandb`` would be, and is given what the logger gives it."""

    def __init__(self):
        self.init_args, self.rows, self.defined, self.finished = {}, [], [], False

    def Settings(self, **kwargs):
        return kwargs

    def Table(self, columns):
        rows = []
        return type("Table", (), {"add_data": lambda self, *row: rows.append(row), "rows": rows})()

    def init(self, **kwargs):
        self.init_args = kwargs
        return self

    def define_metric(self, *args, **kwargs):
        self.defined.append((args, kwargs))

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    return fake


def test_wandb_gets_the_step_as_a_metric_so_that_no_row_is_dropped(wandb):
    logger = loggers.WandbLogger()
    logger.start(INFO)
    logger.log({"x": 1.0}, 5)
    logger.log({"x": 2.0}, 3)
    logger.samples([make_trajectory([("a", "b"), "c"], answer=7)], 3)
    logger.close()
    assert wandb.rows[:2] == [
        {"x": 1.0, "training/global_step": 5},
        {"x": 2.0, "training/global_step": 3},
    ]
    assert wandb.rows[2]["val/generations"].rows == [(3, "task", "abc", "7", None)]
    assert (("*",), {"step_metric": "training/global_step"}) in wandb.defined
    assert wandb.init_args["id"] == "id" and wandb.init_args["resume"] == "allow"
    assert wandb.finished


def test_wandb_is_offline_without_an_account_and_as_told_otherwise(wandb, monkeypatch):
    logger = loggers.WandbLogger()
    logger.start(INFO)
    assert wandb.init_args["mode"] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    logger.start(INFO)
    assert wandb.init_args["mode"] is None
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    logger.start(INFO)
    assert wandb.init_args["mode"] is None


def test_mlflow_gets_metrics_settings_and_texts_and_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    told = []
    config = {"trainer": {"seed": 7, "logger": ("mlflow",)}, "x": None}
    for sitting in (1, 2):
        (logger,) = make_loggers(["mlflow"], told.append)
        logger.start(RunInfo(tmp_path, "p", "e", "run1", config | {"x": sitting}))
        logger.log({"val-core/a/mean@8": sitting / 2, "odd": float("nan")}, sitting)
        logger.samples([make_trajectory([("code", "output"), "answer"])], sitting)
        logger.close()
    assert told == []
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert run.info.run_name == "e" and run.info.status == "FINISHED"
    assert run.data.params == {"trainer.seed": "7", "trainer.logger": "('mlflow',)", "x": "1"}
    history = client.get_metric_history(run.info.run_id, "val-core/a/mean_8")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 1.0)]
    names = [file.path for file in client.list_artifacts(run.info.run_id, "val")]
    assert names == ["val/generations-000001.json", "val/generations-000002.json"]


def test_trackio_gets_metrics_and_texts_and_goes_on_in_the_same_run(monkeypatch):
    class FakeTrackio(list):
        Table = staticmethod(lambda dataframe: dataframe.to_dict("records"))

        def init(self, **settings):
            self.append(settings)
            return self

        def log(self, row, step):
            self.append((row, step))

        def finish(self):
            self.append("finished")

    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    logger = loggers.TrackioLogger()
    logger.start(RunInfo(Path("."), "p", "e", "id", {"a": {"b": None}, "c": 1}))
    logger.log({"x": 1.0}, 5)
    logger.samples([make_trajectory(["a"], answer=7)], 5)
    logger.close()
    settings, *rest = fake
    assert (settings["name"], settings["resume"]) == ("e-id", "allow")
    assert settings["config"] == {"a.b": "None", "c": 1}
    row = {"step": 5, "task": "task", "transcript": "a", "answer": "7", "reward": None}
    assert rest == [({"x": 1.0}, 5), ({"val/generations": [row]}, 5), "finished"]


@pytest.mark.slow
def test_the_real_trackio_writes_a_run(tmp_path):
    """In a process of its own: trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "from pathlib import Path\n"
        "from agent_r1.monitor.loggers import RunInfo, make_loggers\n"
        "from agent_r1.testing import make_trajectory\n"
        "told = []\n"
        "for step in (1, 2):\n"
        "    (logger,) = make_loggers(['trackio'], told.append)\n"
        "    logger.start(RunInfo(Path('.'), 'p', 'e', 'id', {'a': 1}))\n"
        "    logger.log({'x': step / 2}, step)\n"
        "    logger.samples([make_trajectory(['a'])], step)\n"
        "    logger.close()\n"
        "print(told)\n"
        "import trackio\n"
        "run = trackio.Api().runs('p')\n"
        "print(len(list(run)))\n"
    )
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert out.stdout.splitlines()[-2:] == ["[]", "1"]


@pytest.mark.slow
def test_the_real_wandb_writes_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = []
    (logger,) = make_loggers(["wandb"], told.append)
    logger.start(RunInfo(tmp_path, "p", "e", "run1", {"a": 1}))
    logger.log({"x": 1.0}, 1)
    logger.samples([make_trajectory(["a"])], 1)
    logger.close()
    assert told == []
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
