"""Argument lists written for verl and Agent-R1 start here without editing."""

import warnings

import pytest

from agent_r1.config import ConfigWarning, load_config
from agent_r1.config.ignored import IGNORED, REFUSED, RENAMED, REPLACED_VALUES
from agent_r1.config.keys import leaf_above
from agent_r1.errors import ConfigError


def load(*overrides):
    return load_config(None, overrides, environ={})


# The settings that the run scripts published with Agent-R1 give, as a shell hands them over.
PPO_RETOOL = [
    "data.train_files=[data/retool/train.parquet]",
    "data.val_files=[data/retool/test.parquet]",
    "data.train_batch_size=128",
    "data.max_prompt_length=16384",
    "data.max_response_length=16384",
    "data.max_response_length_single_turn=8192",
    "data.use_default_tool_template=False",
    "actor_rollout_ref.model.path=some/model",
    "actor_rollout_ref.actor.optim.lr=1e-6",
    "actor_rollout_ref.model.use_remove_padding=True",
    "actor_rollout_ref.actor.ppo_mini_batch_size=64",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.model.enable_gradient_checkpointing=True",
    "actor_rollout_ref.actor.fsdp_config.param_offload=False",
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload=False",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
    "actor_rollout_ref.rollout.stop_token_ids=[]",
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.6",
    "actor_rollout_ref.rollout.n_repeat=5",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.ref.fsdp_config.param_offload=True",
    "critic.optim.lr=1e-5",
    "critic.model.use_remove_padding=True",
    "critic.model.path=some/model",
    "critic.model.enable_gradient_checkpointing=True",
    "critic.ppo_micro_batch_size_per_gpu=2",
    "critic.model.fsdp_config.param_offload=False",
    "critic.model.fsdp_config.optimizer_offload=False",
    "algorithm.adv_estimator=gae",
    "algorithm.kl_ctrl.kl_coef=0.001",
    "algorithm.use_kl_in_reward=True",
    "trainer.critic_warmup=5",
    "trainer.logger=[console,wandb]",
    "trainer.project_name=retool",
    "trainer.experiment_name=ppo-qwen3-4b-sft",
    "trainer.n_gpus_per_node=8",
    "trainer.nnodes=1",
    "trainer.save_freq=-1",
    "trainer.test_freq=10",
    "trainer.total_epochs=2",
    "trainer.val_before_train=True",
    "trainer.log_val_generations=0",
    "tool.max_turns=5",
    "tool.tools=[python]",
    "tool.env=retool",
    "tool.max_tool_response_length=512",
]


def test_the_published_ppo_script_is_understood():
    with pytest.warns(ConfigWarning):
        config = load(*PPO_RETOOL)
    rollout = config.actor_rollout_ref.rollout
    assert (rollout.n, rollout.response_length, rollout.name) == (5, 8192, "embedded")
    assert config.algorithm.adv_estimator == "gae" and config.algorithm.use_kl_in_reward
    assert (config.tool.env, config.tool.max_turns, config.tool.tools) == ("retool", 5, ("python",))
    assert config.trainer.logger == ("console", "wandb")
    assert config.critic.optim.lr == 1e-5


def test_a_published_grpo_scripts_own_names_are_understood():
    config = load(
        "algorithm.adv_estimator=grpo",
        "actor_rollout_ref.rollout.n_repeat=5",
        "actor_rollout_ref.actor.use_kl_loss=True",
        "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
        "trainer.val_generations_to_log_to_wandb=4",
        "data.train_max_samples=-1",
        "actor_rollout_ref.rollout.top_k=-1",
    )
    assert config.actor_rollout_ref.actor.kl_loss_type == "k3"
    assert config.trainer.log_val_generations == 4


@pytest.mark.parametrize(("name", "ours"), list(RENAMED.items()))
def test_a_renamed_setting_leads_to_a_setting_that_exists(name, ours):
    assert leaf_above(ours) is not None
    assert leaf_above(name) is None, "the old name is itself a setting"


@pytest.mark.parametrize("name", [*IGNORED, *REFUSED])
def test_a_name_without_meaning_is_not_one_of_ours(name):
    assert leaf_above(name.removesuffix(".*")) is None
    assert name not in RENAMED


def test_a_renamed_mapping_brings_what_is_in_it():
    config = load("data.apply_chat_template_kwargs.enable_thinking=False")
    assert config.actor_rollout_ref.model.chat_template_kwargs == {"enable_thinking": False}


def test_an_ignored_name_warns_once_with_its_reason():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load(
            "trainer.balance_batch=True", "trainer.balance_batch=True", "reward_model.enable=False"
        )
    texts = [str(w.message) for w in seen]
    assert len(texts) == 2
    assert "trainer.balance_batch=true (command line) has no effect: it is always so" in texts[0]
    assert "reward.name" in texts[1]


def test_a_pattern_covers_what_is_below_it():
    with pytest.warns(ConfigWarning, match="no effect"):
        load("actor_rollout_ref.actor.megatron.override_transformer_config.x=1")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_name_whose_silence_would_change_the_run_is_an_error(name):
    key = name.replace("*", "path")
    with pytest.raises(ConfigError, match="is not supported"):
        load(f"{key}=x.py")


def test_a_value_that_is_replaced_says_so():
    for (key, value), (replacement, _) in REPLACED_VALUES.items():
        with pytest.warns(ConfigWarning, match=f"{value} is read as {replacement}"):
            load(f"{key}={value}")


def test_the_later_of_two_names_of_one_setting_wins():
    names = ("actor_rollout_ref.rollout.n=2", "actor_rollout_ref.rollout.n_repeat=5")
    assert load(*names).actor_rollout_ref.rollout.n == 5
    assert load(*reversed(names)).actor_rollout_ref.rollout.n == 2
