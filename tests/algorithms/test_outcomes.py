import dataclasses

import pytest
import torch

from agent_r1.algorithms.advantages import dr_grpo, gae
from agent_r1.algorithms.outcomes import OutcomePolicy, Treatment
from agent_r1.errors import ConfigError
from agent_r1.types import Outcome

MASK = torch.tensor([[0, 1, 1]] * 4, dtype=torch.bool)
REWARD = torch.tensor([1.0, 0.0, 0.5, 0.25])


def test_every_outcome_has_a_policy():
    policy = OutcomePolicy()
    assert set(policy.treatments) == set(Outcome)
    for outcome in Outcome:
        assert policy.keeps(outcome) is not outcome.failed


@pytest.mark.parametrize("outcome", [Outcome.TOOL_ERROR, Outcome.ENGINE_ERROR])
@pytest.mark.parametrize("treatment", [t for t in Treatment if t is not Treatment.DROP])
def test_failed_machinery_can_only_be_dropped(outcome, treatment):
    with pytest.raises(ConfigError, match="drop"):
        OutcomePolicy.from_options({outcome: treatment})


def test_a_true_end_cannot_be_bootstrapped():
    with pytest.raises(ConfigError, match="finished"):
        OutcomePolicy.from_options({"finished": "bootstrap"})


@pytest.mark.parametrize("table", [{"lenght": "mask"}, {"length": "maks"}])
def test_misspelt_tables_list_what_there_is(table):
    with pytest.raises(ConfigError, match=r"outcomes: finished.*treatments: count"):
        OutcomePolicy.from_options(table)


def test_a_table_must_be_complete():
    with pytest.raises(ConfigError, match="length"):
        OutcomePolicy({Outcome.FINISHED: Treatment.COUNT})


def test_treatments_by_hand(same):
    policy = OutcomePolicy.from_options(
        {"length": "mask", "turn_limit": "penalise", "context": "bootstrap"}, penalty=-0.5
    )
    rows = policy.apply(
        [Outcome.FINISHED, Outcome.LENGTH, Outcome.TURN_LIMIT, Outcome.CONTEXT], REWARD, MASK
    )
    same(rows.reward, [1.0, 0.0, 0.0, 0.25])
    assert rows.loss_mask.any(1).tolist() == [True, False, True, True]
    assert rows.counted.tolist() == [True, True, True, True]
    assert rows.truncated.tolist() == [False, False, False, True]
    assert policy.reward(Outcome.TURN_LIMIT, 0.5) == 0.0
    assert policy.reward(Outcome.FINISHED, 0.5) == 0.5


def test_dropped_and_padding_rows_are_in_neither_loss_nor_baseline():
    policy = OutcomePolicy.from_options({"timeout": "drop"})
    rows = policy.apply([Outcome.FINISHED, Outcome.TIMEOUT, Outcome.LENGTH], REWARD, MASK)
    assert rows.counted.tolist() == [True, False, True, False]
    assert rows.loss_mask.any(1).tolist() == [True, False, True, False]
    assert not policy.keeps(Outcome.TIMEOUT)


def applied(batch, treatment: str, **optional):
    inputs = batch([".0", ".0", ".0"], [1.0, 0.0, -4.0], **optional)
    rows = OutcomePolicy.from_options({"length": treatment}, penalty=-1.0).apply(
        [Outcome.FINISHED, Outcome.FINISHED, Outcome.LENGTH], inputs.reward, inputs.loss_mask
    )
    return dataclasses.replace(
        inputs,
        reward=rows.reward,
        loss_mask=rows.loss_mask,
        counted=rows.counted,
        truncated=rows.truncated,
    )


@pytest.mark.parametrize(
    ("treatment", "advantages"),
    [
        ("count", [2.0, 1.0, -3.0]),  # mean -1
        ("mask", [2.0, 1.0, 0.0]),
        ("drop", [0.5, -0.5, 0.0]),  # mean of the other two
        ("penalise", [7 / 3, 4 / 3, -11 / 3]),  # mean -4/3
        ("bootstrap", [2.0, 1.0, -3.0]),
    ],
)
def test_what_a_treatment_does_to_the_advantages(treatment, advantages, batch, same):
    same(dr_grpo(applied(batch, treatment)).advantages[:, 1], advantages)


def test_bootstrap_reaches_the_critic_s_targets_and_count_does_not(batch, same):
    optional = {"values": torch.zeros(3, 2).double(), "bootstrap_value": [7.0, 7.0, 7.0]}
    cut = gae(applied(batch, "bootstrap", **optional), whiten=False)
    same(cut.returns[:, 1], [1.0, 0.0, 3.0])
    same(gae(applied(batch, "count", **optional), whiten=False).returns[:, 1], [1.0, 0.0, -4.0])
