"""The processes of a run on one machine: started, and started again when one is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_r1.config.load import load_config, to_yaml
from agent_r1.distributed.launch import (
    RESTARTS,
    Lost,
    ended,
    launch,
    needs_launch,
    needs_ray,
    placement,
)
from agent_r1.distributed.ranks import HUNG
from agent_r1.errors import RankError

from .test_rl import assert_equal, final_state, lines

KILLED = -9


def configured(*overrides):
    return load_config(
        None, ["trainer.device=cpu", "trainer.n_gpus_per_node=2", *overrides], environ={}
    )


def failing(*exitcodes):
    """A launcher whose first attempts end like this; the next one succeeds."""
    left, seen = list(exitcodes), []

    def start(command, count):
        seen.append((command, count, os.environ[RESTARTS]))
        if left:
            code = left.pop(0)
            raise Lost("rank 1", ended(code), code)

    return start, seen


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """``launch`` speaks to the processes through this one's environment."""
    for name in (RESTARTS, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_one_process_on_one_device_needs_no_launch(monkeypatch):
    assert not needs_launch(load_config(None, ["trainer.device=cpu"], environ={}))
    assert needs_launch(configured())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not needs_launch(configured())


def test_several_machines_and_a_named_cluster_need_ray():
    assert not needs_ray(configured())
    for setting in ("trainer.nnodes=2", "ray.address=auto"):
        config = load_config(None, ["trainer.device=cpu", setting], environ={})
        assert needs_ray(config) and needs_launch(config)


def test_what_runs_where_is_told_first():
    told = list(placement(configured()))
    assert "2 processes" in told[0]
    assert "rank 0" in told[1] and "training loop" in told[1] and "training loop" not in told[2]


def test_a_lost_process_is_followed_by_a_restart_that_is_counted_and_explained():
    start, seen = failing(KILLED, 1)
    said = []
    launch(configured(), ["train", "a=1"], say=said.append, start=start)
    assert seen == [(("-m", "agent_r1", "train", "a=1"), 2, str(n)) for n in range(3)]
    assert "rank 1 was killed by signal 9; restart 1 of at most 3" in said[-2]
    assert "rank 1 failed with code 1; restart 2 of at most 3" in said[-1]


def test_a_process_that_waited_too_long_is_a_reason_of_its_own():
    start, _ = failing(HUNG)
    said = []
    launch(configured(), ["train"], say=said.append, start=start)
    assert "rank 1 waited for the others too long" in said[-1] and "restart 1" in said[-1]


@pytest.mark.parametrize("hang", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"])
def test_what_hangs_is_ended_and_says_where(hang):
    code = (
        "import ctypes, time\n"
        "from agent_r1.distributed import ranks\n"
        "ranks._GRACE_S = 1.0\n"
        "def in_place_of_a_collective():\n"
        f"    {hang}\n"
        "with ranks.watched(0.3, 'update_policy'):\n"
        "    in_place_of_a_collective()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert "in in_place_of_a_collective" in done.stderr
    if hang.startswith("time"):
        assert done.returncode == HUNG
        assert "update_policy takes longer than actor_rollout_ref.nccl_timeout=0.3" in done.stderr
    else:  # it holds the interpreter's lock, so that no thread of Python runs
        assert done.returncode == 1


def test_restarts_are_bounded():
    start, seen = failing(*[KILLED] * 9)
    with pytest.raises(RankError, match=r"max_restarts=2 restarts are used up"):
        launch(configured("trainer.max_restarts=2"), ["train"], say=list, start=start)
    assert len(seen) == 3


@pytest.mark.parametrize("code", [2, 3, 130])
def test_a_wrong_configuration_a_full_disk_and_an_interrupt_are_not_repeated(code):
    start, seen = failing(code)
    with pytest.raises(SystemExit) as ended:
        launch(configured(), ["train"], say=list, start=start)
    assert ended.value.code == code and len(seen) == 1


def processes_of(run, rank):
    """Processes of this run with this rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "environ").read_bytes().split(b"\0")
            given = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={rank}".encode() in said and run.encode() in given and b"agent_r1" in given:
            found.append(int(folder.name))
    return found


def started(config, tmp_path, run):
    """``agent-r1 train`` with this configuration, its output in a pipe."""
    file = tmp_path / f"{run}.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "agent_r1", "train", "--config", str(file)]
    return config.trainer.run_dir, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


SLEEPS = """
import os, time
from pathlib import Path
from agent_r1.algorithms.losses import ppo

def loss(inputs, *, clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0):
    once = Path(__file__).with_name("slept.once")
    if os.environ["RANK"] == "1" and not once.exists():
        steps = Path(__file__).with_name("steps")
        steps.write_text(steps.read_text() + "." if steps.exists() else ".")
        if len(steps.read_text()) == 3:
            once.touch()
            time.sleep(3600)
    bounds = {"clip_ratio_low": clip_ratio_low, "clip_ratio_high": clip_ratio_high}
    return ppo(inputs, **bounds, clip_ratio_c=clip_ratio_c)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_rank_that_sleeps_in_place_of_a_collective_is_found_and_the_run_ends_the_same(
    toy_config, tmp_path
):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    settings = ["trainer.n_gpus_per_node=2", "trainer.total_training_steps=4"]
    settings += ["trainer.save_freq=1", "actor_rollout_ref.nccl_timeout=25"]
    whole, process = started(toy_config(*settings, run="whole"), tmp_path, "whole")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    settings += [f"actor_rollout_ref.actor.policy_loss.loss_mode={tmp_path}/sleeps.py:loss"]
    run, process = started(toy_config(*settings, run="slept"), tmp_path, "slept")
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "update_policy takes longer than actor_rollout_ref.nccl_timeout=25" in said
    assert "sleeps.py" in said and "waited for the others too long" in said
    assert "restart 1 of at most 3 from the newest checkpoint" in said
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_whose_process_is_killed_ends_like_one_that_was_left_alone(
    toy_config, tmp_path, rank
):
    def start(run):
        config = toy_config(
            "trainer.n_gpus_per_node=2",
            "trainer.total_training_steps=12",
            "trainer.save_freq=1",
            run=run,
        )
        return started(config, tmp_path, run)

    whole, process = start("whole")
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    run, process = start("killed")
    checkpoints = run / "checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    (victim,) = processes_of("killed.yaml", rank)
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "was killed by signal 9; restart 1 of at most 3" in said
    assert not processes_of("killed.yaml", 0) and not processes_of("killed.yaml", 1)
    assert_equal(final_state(whole), final_state(run))
    assert (run / "checkpoints/step-000012/policy/model.safetensors").is_file()
    assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_settings_that_offload_in_one_process_offload_the_shards_of_several(toy_config, tmp_path):
    """On a CPU it is the same memory; the numbers must be the same, too."""
    common = ["trainer.n_gpus_per_node=2", "trainer.total_training_steps=2"]
    common += ["actor_rollout_ref.actor.use_kl_loss=true"]
    offload = ["actor_rollout_ref.actor.optim.offload=true", "actor_rollout_ref.ref.offload=true"]
    runs = []
    for run, settings in (("plain", []), ("offloaded", offload)):
        folder, process = started(toy_config(*common, *settings, run=run), tmp_path, run)
        told, _ = process.communicate(timeout=250)
        assert process.returncode == 0, told
        runs.append(folder)
    assert_equal(final_state(runs[0]), final_state(runs[1]))
    assert lines(runs[0], "metrics.jsonl") == lines(runs[1], "metrics.jsonl")
