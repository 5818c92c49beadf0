"""The correction for an engine that samples from another policy, as it is configured."""

from dataclasses import replace

import pytest
import torch

from agent_r1.config.schema import Config
from agent_r1.data.batch import Batch
from agent_r1.testing.records import make_trajectory
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.types import Reward


def sampled():
    """Two siblings of four and two tokens, each drawn with log-probability -1."""
    made = [make_trajectory(["abcd"]), make_trajectory(["ef"])]
    return [
        replace(each, index=i, reward=Reward(float(i)), group_id="g") for i, each in enumerate(made)
    ]


def credit(log_weights, **correction):
    """Credit of :func:`sampled` where the trainer's log-probabilities differ by these."""
    config = Config.model_validate({"algorithm": {"rollout_correction": correction}})
    trajectories = sampled()
    batch = Batch.from_trajectories(trajectories, 0)
    recomputed = batch.behavior_logprobs.clone()
    recomputed[batch.loss_mask] += torch.tensor(log_weights)
    return batch, CreditAssigner(config.algorithm).assign(
        batch, trajectories, recomputed, None, None
    )


LOG_WEIGHTS = [0.0, 1.0, -1.0, 0.1, 0.0, 0.0]
BOUNDS = {"rollout_is_threshold": 2.0, "rollout_is_threshold_lower": 0.5}


def test_no_correction_weighs_and_drops_nothing():
    batch, found = credit(LOG_WEIGHTS, rollout_is="none")
    assert found.weights is None and torch.equal(found.batch.loss_mask, batch.loss_mask)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("truncate", [1.0, 2.0, 0.3679, 1.1052, 1.0, 1.0]), ("mask", [1.0, 0.0, 0.0, 1.1052, 1, 1])],
)
def test_weights_keep_every_token_in_the_divisor(mode, expected):
    batch, found = credit(LOG_WEIGHTS, rollout_is="token", mode=mode, **BOUNDS)
    assert torch.equal(found.batch.loss_mask, batch.loss_mask)
    assert found.weights[batch.loss_mask].tolist() == pytest.approx(expected, abs=1e-4)


def test_dropping_takes_tokens_out_of_the_divisor_and_weighs_nothing():
    batch, found = credit(LOG_WEIGHTS, rollout_is="token", mode="drop", **BOUNDS)
    assert found.weights is None
    kept = found.batch.loss_mask[batch.loss_mask].tolist()
    assert kept == [True, False, False, True, True, True]
    assert found.metrics["training/rollout_is_dropped"] == pytest.approx(2 / 6)


def test_dropping_by_trajectory_takes_all_of_it():
    batch, found = credit([1.0, 1, 1, 1, 0, 0], rollout_is="geometric", mode="drop", **BOUNDS)
    assert found.batch.loss_mask.sum(1).tolist() == [0, 2]
    assert batch.loss_mask.sum(1).tolist() == [4, 2]
