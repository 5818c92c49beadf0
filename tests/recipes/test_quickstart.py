import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent_r1.errors import ConfigError
from agent_r1.recipes import arithmetic
from agent_r1.recipes.quickstart import quickstart
from agent_r1.recipes.quickstart_report import _bar, _percent

SMALL = (
    "trainer.total_training_steps=1",
    "trainer.logger=[]",
    "data.train_batch_size=2",
    "data.val_max_samples=6",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
)
SHORT = ("trainer.total_training_steps=2", "data.val_max_samples=4")


def run(folder, *overrides):
    return quickstart(None, [f"trainer.default_local_dir={folder}", *SMALL, *overrides], SHORT)


def test_every_stage_leaves_its_files_and_the_report_says_so(tmp_path, capsys):
    report = run(tmp_path)
    shown = capsys.readouterr().out
    for file in (
        "model/config.json",
        "cold-start/policy/model.safetensors",
        "cold-start/metrics.jsonl",
        "rl/metrics.jsonl",
        "rl/trajectories.arrows",
        "rl/curve.png",
        "rl/run.json",
        "rl/checkpoints/step-000001/policy/model.safetensors",
        "report.json",
    ):
        assert (tmp_path / file).is_file(), file
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["after"]["problems"] == report.before.problems == 6
    assert set(stored["after"]["families"]) == set(report.before.families)
    assert len(report.before.families) == 6
    assert list(report.seconds) == ["model", "cold start", "reinforcement learning", "measuring"]
    for text in ("1/3 Model", "held-out problems", "agent-r1 chat --run", "curve.png"):
        assert text in shown
    question = next(arithmetic.problems("val", report.seed)).question
    assert f"-m '{question}'  # it learned these kinds only: gcd, " in shown
    assert (report.cold_start_steps, report.rl_steps, report.trajectories) == (2, 1, 4)


def test_the_same_call_continues_and_a_finished_run_is_reported_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path)
    assert (again.before, again.after) == (first.before, first.after)
    assert len((tmp_path / "rl/metrics.jsonl").read_text().splitlines()) == 2


def test_an_interruption_says_where_to_go_on_and_loses_nothing(tmp_path):
    def interrupt_when_training():
        while not metrics.is_file() or not metrics.read_text().count("\n"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    metrics = tmp_path / "cold-start/metrics.jsonl"
    settings = [f"trainer.default_local_dir={tmp_path}", *SMALL]
    thread = threading.Thread(target=interrupt_when_training)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="the same command continues there"):
        quickstart(None, settings, ["trainer.total_training_steps=100000", *SHORT[1:]])
    thread.join()
    done = len(metrics.read_text().splitlines())
    assert done >= 1
    quickstart(None, settings, [f"trainer.total_training_steps={done + 1}", *SHORT[1:]])
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(
        range(1, done + 2)
    )


@pytest.mark.parametrize("estimator", ["gae", "reinforce_plus_plus"])
def test_other_algorithms_need_an_override_only(tmp_path, monkeypatch, estimator):
    monkeypatch.chdir(tmp_path)
    report = quickstart(None, [f"algorithm.adv_estimator={estimator}", *SMALL], SHORT)
    assert report.algorithm == estimator
    assert (tmp_path / f"runs/quickstart/{estimator}-seed0/report.json").is_file()


def test_another_model_is_refused_with_the_command_to_use(tmp_path):
    with pytest.raises(ConfigError, match="agent-r1 train"):
        run(tmp_path, "actor_rollout_ref.model.path=./mine")


def test_a_wrong_key_is_found_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.seed"):
        run(tmp_path, "trainer.sed=3")
    assert not list(tmp_path.iterdir())


def test_numbers_are_shown_without_false_zeros():
    assert [_percent(x) for x in (0.0, 0.004, 0.5, 0.951, 1.0)] == [
        "0%",
        "0.4%",
        "50%",
        "95%",
        "100%",
    ]
    assert _bar(0.25, 0.75, 8).plain == "██████░░"
    assert _bar(0.5, 0.25, 8).plain == "██░░░░░░"


@pytest.mark.slow
def test_the_stages_are_ordinary_commands(tmp_path):
    """The example script does by hand what the quick start does."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "RUN": str(tmp_path / "run"),
        "AGENT_R1_OVERRIDES": "trainer.total_training_steps=1 data.val_max_samples=4",
    }
    script = str(root / "examples/quickstart_by_hand.sh")
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(
            [script, "algorithm.adv_estimator=rloo"],
            env=environment,
            cwd=root,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert "agent_r1 chat --run" in done.stdout
    assert (tmp_path / "run/rl/checkpoints/step-000001/policy/model.safetensors").is_file()
