"""Ctrl-C in every phase: finished work is saved and the rest is repeated exactly."""

import os
import signal
from contextlib import ExitStack
from dataclasses import replace

import pytest

from agent_r1.trainer.build import build_parts, train
from agent_r1.trainer.checkpoint import CheckpointStore
from agent_r1.trainer.rl import RLTrainer

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
    run_of(toy_config, "trainer.test_freq=1", "trainer.accept_changes=true")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")
    assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")


def test_an_interrupt_during_the_update_finishes_the_step_first(toy_config, whole):
    stopped = toy_config("trainer.test_freq=1", f"algorithm.adv_estimator={TOY}:interrupting_grpo")
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    run = stopped.trainer.run_dir
    assert CheckpointStore(run / "checkpoints").latest().name == "step-000001"
    run_of(toy_config, "trainer.test_freq=1", "trainer.accept_changes=true")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")


def test_an_interrupt_while_the_baseline_is_sampled_repeats_the_whole_step(toy_config):
    remax = ["algorithm.adv_estimator=remax", "data.val_files=[]"]
    whole = run_of(toy_config, *remax, run="whole")
    stopped = toy_config(
        *remax, f"tool.env={TOY}:InterruptingGreedyEnv", "tool.env_kwargs={at: '2.'}"
    )
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    run = run_of(toy_config, *remax, "trainer.accept_changes=true")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "trajectories.jsonl") == lines(run, "trajectories.jsonl")


class InterruptingStore(CheckpointStore):
    """Presses Ctrl-C while its first checkpoint is being written."""

    def finish(self, draft, state, export, *, passing=False):
        def interrupted(path):
            if not self.list():
                os.kill(os.getpid(), signal.SIGINT)
            export(path)

        return super().finish(draft, state, interrupted, passing=passing)


def test_an_interrupt_while_saving_leaves_a_whole_checkpoint(toy_config, whole):
    config = toy_config("trainer.test_freq=1", "trainer.save_freq=2")
    run = config.trainer.run_dir
    with ExitStack() as stack, pytest.raises(KeyboardInterrupt):
        parts, _ = build_parts(config, stack)
        RLTrainer(config, replace(parts, checkpoints=InterruptingStore(run / "checkpoints"))).fit()
    assert [path.name for path in CheckpointStore(run / "checkpoints").list()] == ["step-000002"]
    run_of(toy_config, "trainer.test_freq=1", "trainer.save_freq=2")
    assert_equal(final_state(whole), final_state(run))
    assert lines(whole, "metrics.jsonl") == lines(run, "metrics.jsonl")
