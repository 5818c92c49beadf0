"""Combinations that cannot work name both settings and the way out."""

import pytest

from agent_r1.config import Config, ConfigWarning, load_config
from agent_r1.config.checks import ESTIMATORS, POLICY_LOSSES, WITH_CRITIC, needs_critic
from agent_r1.errors import ConfigError

GAE = "algorithm.adv_estimator=gae"
ROLLOUT = "actor_rollout_ref.rollout"


def load(*overrides):
    return load_config(None, overrides, environ={})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.adv_estimator=gea"], ["adv_estimator=gea", "did you mean gae?"]),
        (
            ["actor_rollout_ref.actor.policy_loss.loss_mode=gpso"],
            ["loss_mode=gpso", "did you mean gspo?"],
        ),
        (["trainer.logger=[consol]"], ["trainer.logger=consol", "did you mean console?"]),
        (
            ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=16"],
            ["ppo_mini_batch_size=16", "train_batch_size=8", "divisor"],
        ),
        (
            ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=3"],
            ["ppo_mini_batch_size=3", "train_batch_size=8", "divisor"],
        ),
        (
            ["data.train_batch_size=8", "critic.ppo_mini_batch_size=3"],
            ["critic.ppo_mini_batch_size=3", "train_batch_size=8"],
        ),
        ([f"{ROLLOUT}.n=1"], ["adv_estimator=grpo", "n=1", "set n to 2 or more"]),
        (
            [f"{ROLLOUT}.n=1", GAE, "algorithm.filter_groups.enable=true"],
            ["filter_groups.enable=true", "n=1"],
        ),
        (
            [f"{ROLLOUT}.response_length=100", "data.max_response_length=50"],
            ["response_length=100", "max_response_length=50", "lower it"],
        ),
        (
            [f"{ROLLOUT}.max_model_len=100", "data.max_prompt_length=100"],
            ["max_model_len=100", "max_prompt_length=100"],
        ),
        (
            [
                f"{ROLLOUT}.max_model_len=100",
                "data.max_prompt_length=10",
                "data.max_response_length=200",
            ],
            ["max_response_length=200", "max_model_len=100", "lower it"],
        ),
        (
            ["reward.overlong_buffer.enable=true", "data.max_response_length=512"],
            ["overlong_buffer.len=512", "max_response_length=512"],
        ),
        (["trainer.critic_warmup=2"], ["critic_warmup=2", "adv_estimator=grpo", "use gae"]),
        (
            ["algorithm.outcome_policy.length=bootstrap"],
            ["outcome_policy.length=bootstrap", "adv_estimator=grpo"],
        ),
        (
            [GAE, "trainer.critic_warmup=5", "trainer.total_training_steps=5"],
            ["critic_warmup=5", "total_training_steps=5", "lower it"],
        ),
        (
            ["algorithm.rollout_correction.rollout_is_threshold_lower=3"],
            ["threshold_lower=3", "below rollout_is_threshold=2"],
        ),
        (
            [
                "algorithm.rollout_correction.bypass_mode=true",
                "algorithm.rollout_correction.rollout_is=token",
            ],
            ["bypass_mode=true", "rollout_is=token", "set one of the two"],
        ),
        (["actor_rollout_ref.actor.optim.betas=[0.9, 1]"], ["betas=[0.9, 1.0]", "below 1"]),
        (["trainer.resume_mode=resume_path"], ["resume_mode=resume_path", "resume_from_path=null"]),
        (["trainer.resume_from_path=x"], ["resume_mode=auto", "resume_from_path=x"]),
        (
            ["trainer.device=cpu", "actor_rollout_ref.model.dtype=float16"],
            ["trainer.device=cpu", "float16", "use bfloat16"],
        ),
        (["sandbox.executor=http"], ["sandbox.executor=http", "sandbox.endpoints", "serve"]),
        (
            ["sandbox.endpoints=[http://127.0.0.1:1]"],
            ["sandbox.endpoints", "sandbox.executor=embedded", "executor=http"],
        ),
        (
            ["sandbox.executor=http", "sandbox.endpoints=[localhost:80]"],
            ["localhost:80", "http://"],
        ),
    ],
)
def test_an_impossible_combination_is_an_error_with_the_remedy(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [GAE, f"{ROLLOUT}.n=1"],
        [GAE, "trainer.critic_warmup=2", "algorithm.outcome_policy.length=bootstrap"],
        ["algorithm.adv_estimator=reinforce_plus_plus", f"{ROLLOUT}.n=1"],
        ["algorithm.adv_estimator=my_package.estimators:mine", "trainer.critic_warmup=2"],
        ["trainer.logger=[my_package.Logger, tensorboard, wandb]"],
        ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4"],
        ["sandbox.executor=http", "sandbox.endpoints=http://a:1"],
        ["trainer.resume_mode=resume_path", "trainer.resume_from_path=x"],
        ["trainer.test_freq=5"],  # a chat has nothing to validate on and needs nothing
    ],
)
def test_a_sound_combination_passes(overrides):
    load(*overrides)


def test_several_problems_are_reported_together():
    with pytest.raises(ConfigError, match="2 mistakes"):
        load(f"{ROLLOUT}.n=1", "sandbox.executor=http")


def test_the_names_known_here_are_those_of_the_registries():
    from agent_r1.algorithms.registry import ADVANTAGES
    from agent_r1.algorithms.registry import POLICY_LOSSES as LOSSES

    assert sorted(ESTIMATORS) == sorted(ADVANTAGES.names())
    assert sorted(POLICY_LOSSES) == sorted(LOSSES.names())


def test_only_the_estimators_with_values_need_a_critic():
    for name in ESTIMATORS:
        config = Config(algorithm={"adv_estimator": name})
        assert needs_critic(config) == (name in WITH_CRITIC)


def test_the_choices_of_the_schema_are_those_of_the_algorithms():
    from typing import get_args

    from agent_r1.algorithms.aggregate import Aggregation
    from agent_r1.algorithms.outcomes import DEFAULT_TREATMENTS, Treatment
    from agent_r1.config.policy import AggregationMode
    from agent_r1.config.task import OutcomePolicyConfig, OutcomeTreatment

    assert set(get_args(AggregationMode)) == {mode.value for mode in Aggregation}
    assert set(get_args(OutcomeTreatment)) == {treatment.value for treatment in Treatment}
    defaults = OutcomePolicyConfig().model_dump()
    for outcome, treatment in DEFAULT_TREATMENTS.items():
        assert defaults.get(outcome.value, treatment.value) == treatment.value


def test_an_option_that_an_estimator_does_not_take_is_an_error_before_the_first_step():
    from agent_r1.trainer.credit import CreditAssigner

    config = load("algorithm.adv_estimator=gigpo", "algorithm.adv_kwargs.step_advantage_w=0.5")
    CreditAssigner(config.algorithm)
    config = load("algorithm.adv_estimator=gigpo", "algorithm.adv_kwargs.step_adv=0.5")
    with pytest.raises(ConfigError, match="step_adv"):
        CreditAssigner(config.algorithm)


def test_an_option_that_a_loss_does_not_take_is_an_error():
    from agent_r1.trainer.worker import _policy_loss

    _policy_loss(load("actor_rollout_ref.actor.clip_ratio_c=null").actor_rollout_ref.actor)
    config = load("actor_rollout_ref.actor.policy_loss.kwargs.epsilom=0.5")
    with pytest.raises(ConfigError, match="epsilom"):
        _policy_loss(config.actor_rollout_ref.actor)


def test_the_levels_of_isolation_are_those_of_the_sandbox():
    from typing import get_args

    from agent_r1.config.task import SandboxConfig
    from agent_r1.sandbox.isolation import LEVELS

    assert get_args(SandboxConfig.model_fields["isolation"].annotation) == LEVELS


def test_the_limits_of_a_program_are_those_of_the_sandbox():
    from dataclasses import asdict

    from agent_r1.config.task import SandboxLimitsConfig
    from agent_r1.sandbox.base import Limits

    assert SandboxLimitsConfig().model_dump() == asdict(Limits())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["actor_rollout_ref.ref.path=x"], "no KL term is in use"),
        (["actor_rollout_ref.actor.loss_scale_factor=5"], "seq-mean-token-sum-norm"),
        (["actor_rollout_ref.rollout.top_k=5"], "top_k=0 in training"),
    ],
)
def test_what_is_easily_overlooked_is_a_remark(overrides, words):
    with pytest.warns(ConfigWarning, match=words):
        load(*overrides)


def test_a_response_may_be_longer_than_the_window_where_the_context_is_replaced():
    sizes = [
        f"{ROLLOUT}.max_model_len=100",
        "data.max_prompt_length=10",
        "data.max_response_length=200",
    ]
    load(*sizes, "tool.context.policy=summarise")
    load(*sizes, "tool.env=somewhere.py:Env", "tool.tools=[]")
