"""Ctrl-C in every phase: finished work is saved and the rest is repeated exactly."""

import pytest

from agent_r1.trainer.build import train
from agent_r1.trainer.checkpoint import CheckpointStore

from .conftest import TOY
from .test_rl import assert_equal, final_state, lines, run_of


@pytest.fixture
def whole(toy_config):
    return run_of(toy_config, "trainer.test_freq=1", run="whole")


@pytest.mark.parametrize(("at", "saved"), [("1.", 0), ("3.", 2), ("val", 0), ("val@2", 2)])
def test_an_interrupt_while_sampling_saves_the_last_finished_step(toy_config, whole, at, saved):
    stopped = toy_config(
        "trainer.test_freq=1", f"tool.env={TOY}:InterruptingEnv", f"tool.env_kwargs={{at: '{at}'}}"
    )
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    run = stopped.trainer.run_dir
    assert CheckpointStore(run / "checkpoints").latest().name == f"step-{saved:06d}"
    run_of(toy_config, "trainer.test_freq=1")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")
    assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")


def test_an_interrupt_during_the_update_finishes_the_step_first(toy_config, whole):
    stopped = toy_config("trainer.test_freq=1", f"algorithm.adv_estimator={TOY}:interrupting_grpo")
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    run = stopped.trainer.run_dir
    assert CheckpointStore(run / "checkpoints").latest().name == "step-000001"
    run_of(toy_config, "trainer.test_freq=1")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")
