"""``agent-r1 train`` over a Ray cluster of several nodes, with real processes and real deaths."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trainer.test_rl import assert_equal, final_state, lines

from agent_r1.config.load import to_yaml

from .crew import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TWO = ["trainer.nnodes=2", "trainer.n_gpus_per_node=1"]


def of_run(file_name):
    """Processes of a run's ranks and their command lines, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(file_name) for word in words) and "tied" not in " ".join(words):
            ranks = [entry for entry in environ if entry.startswith(b"RANK=")]
            if ranks:
                found[int(folder.name)] = int(ranks[0][5:])
    return found


def test_ranks_on_two_nodes_train_what_two_processes_of_one_machine_train(
    start, two_nodes, toy_config, tmp_path
):
    run, process = start("spread", *TWO)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "2 ranks on 2 machines" in said
    table = [line.split() for line in said.splitlines() if re.match(r"\s+rank \d", line)]
    assert len({row[2] for row in table}) == 2
    assert said.index("rank 1") < said.index("\nrun ")
    config = toy_config("trainer.n_gpus_per_node=2", run="together")
    file = tmp_path / "together.yaml"
    file.write_text(to_yaml(config))
    subprocess.run(
        [sys.executable, "-m", "agent_r1", "train", "--config", str(file)], check=True, timeout=300
    )
    assert_equal(final_state(config.trainer.run_dir), final_state(run))
    assert lines(config.trainer.run_dir, "metrics.jsonl") == lines(run, "metrics.jsonl")


def test_a_cluster_too_small_is_refused_with_what_is_missing(start, two_nodes):
    run, process = start("refused", "trainer.nnodes=3", "trainer.n_gpus_per_node=2")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    missing = [line.split() for line in said.splitlines() if line.split()[:1] == ["missing"]]
    assert missing == [
        ["missing", "0", "GPUs", "2", "CPUs", "for", "ranks", *numbers]
        for numbers in (["2", "to", "3"], ["4", "to", "5"])
    ]
    assert not run.exists()


def test_an_engine_that_never_serves_ends_the_run_with_its_last_words(start, two_nodes, tmp_path):
    server = tmp_path / "server"
    server.write_text("#!/bin/sh\necho no such model\nexit 2\n")
    server.chmod(0o755)
    engines = ["trainer.layout=apart", "actor_rollout_ref.rollout.name=vllm"]
    run, process = start("awaited", *engines, f"actor_rollout_ref.rollout.vllm.python={server}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.count("failed with code 2: no such model; it is started again") == 2
    assert "started 3 times and never served; the last time it failed with code 2: no such" in said
    assert "restart 1" not in said
    assert not of_run("awaited.yaml") and not run.with_name("awaited.weights").exists()


@pytest.mark.parametrize("how", ["driver killed", "interrupted"])
def test_the_end_of_the_driver_leaves_no_process_on_any_node(start, two_nodes, how):
    run, process = start("left", *TWO, "trainer.total_training_steps=100000")
    until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    ranks = of_run("left.yaml")
    assert sorted(ranks.values()) == [0, 1]
    if how == "driver killed":
        process.kill()
        process.communicate(timeout=120)
    else:
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "is finished and saved" in said
        assert list((run / "checkpoints").glob("step-*"))
    until(lambda: not of_run("left.yaml"), 30.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_followed_by_a_restart_and_the_same_numbers(start, two_nodes, rank):
    settings = [*TWO, "trainer.total_training_steps=8", "trainer.save_freq=1"]
    whole, process = start("whole", *settings)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    run, process = start("killed", *settings)
    until(lambda: list((run / "checkpoints").glob("step-*")))
    (victim,) = (pid for pid, which in of_run("killed.yaml").items() if which == rank)
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert f"rank {rank} was killed by signal 9; restart 1 of at most 3" in said
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")
