"""Killed at twenty random moments, a run still ends with the very same numbers."""

import random
import signal
import subprocess
import sys

import pytest

from agent_r1.config.load import to_yaml
from agent_r1.trainer.checkpoint import CheckpointStore, load_state, step_of

from .test_rl import assert_equal, final_state, lines

KILLS = 20
SECONDS = 900


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("estimator", ["grpo", "gae"])
def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(
    toy_config, tmp_path, estimator
):
    settings = [f"algorithm.adv_estimator={estimator}", "trainer.total_training_steps=60"]
    settings += ["trainer.save_freq=1", "trainer.test_freq=5", "trainer.max_ckpt_to_keep=2"]

    def start(run):
        config = toy_config(*settings, run=run)
        file = tmp_path / f"{run}.yaml"
        file.write_text(to_yaml(config))
        command = [sys.executable, "-m", "agent_r1", "train", "--config", str(file)]
        return config.trainer.run_dir, subprocess.Popen(command, stderr=subprocess.DEVNULL)

    whole, process = start("whole")
    assert process.wait(SECONDS) == 0
    moments = random.Random(estimator)
    kills = runs = 0
    while kills < KILLS or runs == 0:
        run, process = start(f"killed-{runs}")
        patience = moments.uniform(0.5, 9.0) if kills < KILLS else SECONDS
        try:
            assert process.wait(patience) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            for path in CheckpointStore(run / "checkpoints").list():
                assert load_state(path)["step"] == step_of(path)
            continue
        runs += 1
        assert_equal(final_state(whole), final_state(run))
        assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")
        assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")
