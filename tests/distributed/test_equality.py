"""Several ranks compute what one process computes."""

import dataclasses

import pytest

from agent_r1.errors import ConfigError

from .cases import Case, compared
from .crew import Crew

ESTIMATORS = [
    "grpo",
    "dr_grpo",
    "gigpo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "gae",
    "turn_gae",
    "opd",
]
LOSSES = ["vanilla", "gspo", "cispo", "reinforce"]
MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]

EVERYTHING = Case(
    algorithm={
        "adv_estimator": "gae",
        "lam": 0.9,
        "use_kl_in_reward": True,
        "rollout_correction": {"rollout_is": "token"},
    },
    actor={
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "entropy_coeff": 0.01,
        "ppo_mini_batch_size": 2,
        "ppo_epochs": 2,
        "grad_clip": 0.05,
    },
    tied=False,
    edited=True,
)
"""Critic, both KL terms, correction, mini-batches, clipped gradients, a head of its own."""

NAMED = {
    "tied": Case(),
    "untied": Case(tied=False),
    "everything": EVERYTHING,
    "one group": Case(groups=(3,), tied=False),
    "a rank without rows": Case(groups=(1,), algorithm={"adv_estimator": "gae"}),
    "edited histories": Case(edited=True),
    "a teacher's best tokens": Case(distillation={"form": "topk", "topk": 5}),
    "a teacher's distributions, a rank without rows": Case(
        distillation={"form": "exact"}, tied=False, groups=(1,)
    ),
    "experts": Case(experts=4, tied=False, actor={"ppo_mini_batch_size": 2}),
    "experts, a rank without rows": Case(experts=4, groups=(1,)),
    "recomputed layers": Case(checkpointing=True, tied=False),
    "adapters": Case(lora=True, actor={"use_kl_loss": True, "kl_loss_coef": 0.1}),
    "adapters, untied": Case(lora=True, tied=False),
    "in the machine's memory": Case(offload=True, tied=False),
    "gathered once a step": dataclasses.replace(EVERYTHING, reshard=False),
    "reduced once a step": dataclasses.replace(EVERYTHING, sync=False),
    "gathered and reduced once a step": dataclasses.replace(EVERYTHING, reshard=False, sync=False),
    "reduced once a step, untied, offloaded": Case(sync=False, tied=False, offload=True),
    "reduced once a step, a rank without rows": Case(reshard=False, sync=False, groups=(1,)),
    "reduced once a step, adapters": Case(reshard=False, sync=False, lora=True),
    "gathered once a step, tied": Case(reshard=False, checkpointing=True),
    "gathered once a step, a rank without rows": Case(reshard=False, groups=(1,)),
    "gathered once a step, adapters": Case(reshard=False, lora=True),
}


def check(crew, case):
    found = crew.run(compared, case)[0]
    moved = found.pop("moved")
    assert moved > 1e-4
    wrong = {name: value for name, value in found.items() if not value <= 1e-5}
    assert not wrong


@pytest.mark.parametrize("name", NAMED)
def test_three_steps_of_two_ranks_are_those_of_one_process(two, name):
    check(two, NAMED[name])


# --- the whole matrix -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2, 3])
def crew(request):
    made = Crew(request.param)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_named_cases_on_any_number_of_ranks(crew, name):
    check(crew, NAMED[name])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_estimator(crew, estimator, tied):
    check(crew, Case({"adv_estimator": estimator}, tied=tied, edited=True, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_every_loss_and_every_mean(crew, loss, mode):
    actor = {"policy_loss": {"loss_mode": loss}, "loss_agg_mode": mode, "ppo_mini_batch_size": 2}
    check(crew, Case(actor=actor, tied=False, edited=True, seed=2))


# --- groups of ranks that hold a copy each ---------------------------------------------


@pytest.fixture(scope="module")
def four():
    made = Crew(4)
    yield made
    made.close()


HYBRID = {
    "everything": dataclasses.replace(EVERYTHING, fsdp_size=2),
    "tied": Case(fsdp_size=2),
    "adapters": Case(fsdp_size=2, lora=True, tied=False),
    "ranks without rows": Case(fsdp_size=2, groups=(2,), tied=False),
    "a copy on every rank": Case(fsdp_size=1, tied=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HYBRID)
def test_four_ranks_in_groups_of_two_are_one_process(four, name):
    check(four, HYBRID[name])


def refused_size(ranks):
    with pytest.raises(ConfigError, match="fsdp_size=3 makes no equal groups of 2 processes"):
        ranks.mesh(3)


def test_groups_must_come_out_even(two):
    two.run(refused_size)


def test_two_ranks_with_a_copy_each_are_one_process(two):
    check(two, HYBRID["a copy on every rank"])
