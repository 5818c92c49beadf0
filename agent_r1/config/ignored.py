"""Names that published run scripts of verl and Agent-R1 use and this project does not.

A script that was written for them should start here without editing. ``RENAMED`` names do
what they say, under the name on the right. ``IGNORED`` names are accepted with one warning
that gives the reason. A pattern that ends in ``.*`` covers everything below it.
"""

from __future__ import annotations

from typing import Any

_PACKING = "micro-batches are packed by tokens; set ppo_max_token_len_per_gpu"
_SHARDING = "decided by FSDP2, or by fsdp_config; see docs/scaling.md"
_CONTEXT = "a row is never cut over processes (docs/scaling.md); use enable_gradient_checkpointing"
_SERVED = "of the engine: see rollout.vllm.tensor_parallel_size and rollout.vllm.args"
_ENGINE = (
    "the embedded engine decides this itself (see rollout.max_num_seqs); vLLM: rollout.vllm.args"
)
_BACKEND = "there is one training backend"
_COMPILED = "on a GPU rotation and gating are compiled always (AGENT_R1_FUSED=0: never)"
_RAY = "the section ray names the cluster"
_LORA = "adapters are described by lora_rank, lora_alpha and target_modules alone"
_REWARD_MODEL = "rewards are functions; a reward model can be called from one (reward.name)"
_PROFILER = "profiling is done from outside, for example with py-spy or torch.profiler"
_MULTIMODAL = "models are text only"
_DERIVED = "it follows from data.max_prompt_length and data.max_response_length"
_ALWAYS = "it is always so here"

RENAMED: dict[str, str] = {
    "actor_rollout_ref.actor.fsdp_config.model_dtype": "actor_rollout_ref.model.dtype",
    "actor_rollout_ref.actor.optim.clip_grad": "actor_rollout_ref.actor.grad_clip",
    "actor_rollout_ref.actor.optim.lr_decay_style": (
        "actor_rollout_ref.actor.optim.lr_scheduler_type"
    ),
    "actor_rollout_ref.actor.optim.optimizer": "actor_rollout_ref.actor.optim.name",
    "actor_rollout_ref.actor.optim.warmup_style": "actor_rollout_ref.actor.optim.lr_scheduler_type",
    "actor_rollout_ref.ref.model.path": "actor_rollout_ref.ref.path",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns": "tool.max_turns",
    "actor_rollout_ref.rollout.multi_turn.max_tool_response_length": (
        "tool.max_tool_response_length"
    ),
    "actor_rollout_ref.rollout.n_repeat": "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.seed": "trainer.seed",
    "algorithm.gigpo.step_advantage_w": "algorithm.adv_kwargs.step_advantage_w",
    "critic.optim.clip_grad": "critic.grad_clip",
    "critic.optim.optimizer": "critic.optim.name",
    "critic.optim.warmup_style": "critic.optim.lr_scheduler_type",
    "data.apply_chat_template_kwargs": "actor_rollout_ref.model.chat_template_kwargs",
    "data.max_response_length_single_turn": "actor_rollout_ref.rollout.response_length",
    "data.max_tool_response_length": "tool.max_tool_response_length",
    "data.reward_fn_key": "data.data_source_key",
    "data.trust_remote_code": "actor_rollout_ref.model.trust_remote_code",
    "reward.reward_kwargs.overlong_buffer_cfg.enable": "reward.overlong_buffer.enable",
    "reward.reward_kwargs.overlong_buffer_cfg.len": "reward.overlong_buffer.len",
    "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": (
        "reward.overlong_buffer.penalty_factor"
    ),
    "reward_model.reward_kwargs.overlong_buffer_cfg.enable": "reward.overlong_buffer.enable",
    "reward_model.reward_kwargs.overlong_buffer_cfg.len": "reward.overlong_buffer.len",
    "reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor": (
        "reward.overlong_buffer.penalty_factor"
    ),
    "trainer.max_actor_ckpt_to_keep": "trainer.max_ckpt_to_keep",
    "trainer.val_generations_to_log_to_wandb": "trainer.log_val_generations",
}

IGNORED: dict[str, str] = {
    "_target_": "it names a class of another program",
    "actor_rollout_ref.actor.calculate_entropy": "the entropy is always logged",
    "actor_rollout_ref.actor.calculate_sum_pi_squared": "it belongs to other estimators",
    "actor_rollout_ref.actor.checkpoint.*": "a checkpoint always holds everything",
    "actor_rollout_ref.actor.data_loader_seed": "trainer.seed covers it",
    "actor_rollout_ref.actor.engine.*": _BACKEND,
    "actor_rollout_ref.actor.entropy_checkpointing": _PACKING,
    "actor_rollout_ref.actor.entropy_from_logits_with_chunking": _ALWAYS,
    "actor_rollout_ref.actor.fsdp_config.*": _SHARDING,
    "actor_rollout_ref.actor.megatron.*": _BACKEND,
    "actor_rollout_ref.actor.model_engine": _BACKEND,
    "actor_rollout_ref.actor.optim.override_optimizer_config.*": _BACKEND,
    "actor_rollout_ref.actor.optim.total_training_steps": "trainer.total_training_steps decides",
    "actor_rollout_ref.actor.pad_to_length": _PACKING,
    "actor_rollout_ref.actor.ppo_infer_max_token_len_per_gpu": _PACKING,
    "actor_rollout_ref.actor.ppo_micro_batch_size": _PACKING,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": _PACKING,
    "actor_rollout_ref.actor.profiler.*": _PROFILER,
    "actor_rollout_ref.actor.strategy": _BACKEND,
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": _CONTEXT,
    "actor_rollout_ref.actor.use_dynamic_bsz": _ALWAYS,
    "actor_rollout_ref.actor.use_prefix_grouper": _PACKING,
    "actor_rollout_ref.actor.use_remove_padding": _ALWAYS,
    "actor_rollout_ref.actor.use_torch_compile": _COMPILED,
    "actor_rollout_ref.actor.veomni.*": _BACKEND,
    "actor_rollout_ref.hybrid_engine": _ALWAYS,
    "actor_rollout_ref.model.enable_activation_offload": "use enable_gradient_checkpointing",
    "actor_rollout_ref.model.exclude_modules": _LORA,
    "actor_rollout_ref.model.external_lib": "name your own class by its path",
    "actor_rollout_ref.model.fused_kernel_options.*": _ALWAYS,
    "actor_rollout_ref.model.lora.*": _LORA,
    "actor_rollout_ref.model.lora_adapter_path": _LORA,
    "actor_rollout_ref.model.mtp.*": _BACKEND,
    "actor_rollout_ref.model.override_config.*": "edit config.json in the model folder",
    "actor_rollout_ref.model.tokenizer_path": "the tokenizer is that of the model folder",
    "actor_rollout_ref.model.use_fused_kernels": _ALWAYS,
    "actor_rollout_ref.model.use_liger": _ALWAYS,
    "actor_rollout_ref.model.use_remove_padding": _ALWAYS,
    "actor_rollout_ref.model.use_shm": "models are read once",
    "actor_rollout_ref.ref.entropy_checkpointing": _PACKING,
    "actor_rollout_ref.ref.entropy_from_logits_with_chunking": _ALWAYS,
    "actor_rollout_ref.ref.fsdp_config.*": _SHARDING,
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": _PACKING,
    "actor_rollout_ref.ref.log_prob_micro_batch_size": _PACKING,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": _PACKING,
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": _ALWAYS,
    "actor_rollout_ref.ref.megatron.*": _BACKEND,
    "actor_rollout_ref.ref.profiler.*": _PROFILER,
    "actor_rollout_ref.ref.strategy": _BACKEND,
    "actor_rollout_ref.ref.ulysses_sequence_parallel_size": _CONTEXT,
    "actor_rollout_ref.ref.use_torch_compile": _COMPILED,
    "actor_rollout_ref.ref.veomni.*": _BACKEND,
    "actor_rollout_ref.rollout.agent.*": "tool.env chooses how an episode runs",
    "actor_rollout_ref.rollout.calculate_log_probs": _ALWAYS,
    "actor_rollout_ref.rollout.checkpoint_engine.*": _ENGINE,
    "actor_rollout_ref.rollout.cudagraph_capture_sizes": _ENGINE,
    "actor_rollout_ref.rollout.data_parallel_size": _SERVED,
    "actor_rollout_ref.rollout.disable_log_stats": _ENGINE,
    "actor_rollout_ref.rollout.do_sample": "temperature says it: 0 is greedy",
    "actor_rollout_ref.rollout.enable_chunked_prefill": _ENGINE,
    "actor_rollout_ref.rollout.enable_prefix_caching": _ENGINE,
    "actor_rollout_ref.rollout.enable_rollout_routing_replay": "routing is not replayed",
    "actor_rollout_ref.rollout.enforce_eager": "set rollout.vllm.enforce_eager",
    "actor_rollout_ref.rollout.engine_kwargs.*": _ENGINE,
    "actor_rollout_ref.rollout.expert_parallel_size": _SERVED,
    "actor_rollout_ref.rollout.ignore_eos": "an end of sequence always ends the turn",
    "actor_rollout_ref.rollout.layered_summon": _ENGINE,
    "actor_rollout_ref.rollout.load_format": _ENGINE,
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": _PACKING,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size": _PACKING,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": _PACKING,
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": _ALWAYS,
    "actor_rollout_ref.rollout.max_num_batched_tokens": _ENGINE,
    "actor_rollout_ref.rollout.mode": "rollouts are always asynchronous",
    "actor_rollout_ref.rollout.moe_tensor_parallel_size": _SERVED,
    "actor_rollout_ref.rollout.multi_stage_wake_up": _ENGINE,
    "actor_rollout_ref.rollout.multi_turn.*": "episodes always have turns; see tool",
    "actor_rollout_ref.rollout.profiler.*": _PROFILER,
    "actor_rollout_ref.rollout.prompt_length": _DERIVED,
    "actor_rollout_ref.rollout.quantization": "set rollout.vllm.quantization",
    "actor_rollout_ref.rollout.skip_tokenizer_init": _ENGINE,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": _SERVED,
    "actor_rollout_ref.rollout.use_fire_sampling": "it would change the sampled distribution",
    "actor_rollout_ref.rollout.val_kwargs.do_sample": "temperature says it: 0 is greedy",
    "algorithm.use_process_rewards": "set algorithm.process_reward_coef",
    "critic.checkpoint.*": "a checkpoint always holds everything",
    "critic.enable": "the estimator decides whether there is a critic",
    "critic.forward_max_token_len_per_gpu": _PACKING,
    "critic.forward_micro_batch_size": _PACKING,
    "critic.forward_micro_batch_size_per_gpu": _PACKING,
    "critic.fsdp.*": _SHARDING,
    "critic.megatron.*": _BACKEND,
    "critic.model.enable_gradient_checkpointing": "actor_rollout_ref.model decides for both",
    "critic.model.external_lib": "name your own class by its path",
    "critic.model.fsdp_config.*": _SHARDING,
    "critic.model.override_config.*": "edit config.json in the model folder",
    "critic.model.tokenizer_path": "the tokenizer is the policy's",
    "critic.model.trust_remote_code": "actor_rollout_ref.model decides for both",
    "critic.model.use_remove_padding": _ALWAYS,
    "critic.optim.total_training_steps": "trainer.total_training_steps decides",
    "critic.ppo_micro_batch_size": _PACKING,
    "critic.ppo_micro_batch_size_per_gpu": _PACKING,
    "critic.profiler.*": _PROFILER,
    "critic.shuffle": "the actor's setting decides for both",
    "critic.strategy": _BACKEND,
    "critic.ulysses_sequence_parallel_size": _CONTEXT,
    "critic.use_dynamic_bsz": _ALWAYS,
    "data.custom_cls.*": "data.train_files takes a generator by its path",
    "data.dataloader_num_workers": "tasks are read by one process",
    "data.filter_overlong_prompts_workers": "tasks are read by one process",
    "data.gen_batch_size": "dynamic sampling asks for data.train_batch_size prompts at a time",
    "data.image_key": _MULTIMODAL,
    "data.image_patch_size": _MULTIMODAL,
    "data.max_start_length": _DERIVED,
    "data.num_workers": "tasks are read by one process",
    "data.return_full_prompt": _ALWAYS,
    "data.return_multi_modal_inputs": _MULTIMODAL,
    "data.return_raw_chat": _ALWAYS,
    "data.return_raw_input_ids": _ALWAYS,
    "data.tokenizer": "the tokenizer is that of the model folder",
    "data.truncation": "prompts are never cut; see data.filter_overlong_prompts",
    "data.use_custom_system_prompt": "the prompt column is used as it is",
    "data.use_default_tool_template": "the environment describes its tools itself",
    "data.use_shm": "files are read once",
    "data.val_batch_size": "validation samples all tasks at once; see rollout.max_concurrency",
    "data.validation_shuffle": "the order of validation does not matter",
    "data.video_key": _MULTIMODAL,
    "global_profiler.*": _PROFILER,
    "ray_init.*": _RAY,
    "ray_kwargs.*": _RAY,
    "reward.num_workers": "a quarter of the CPU cores grade, at most 8",
    "reward.reward_kwargs.max_resp_len": _DERIVED,
    "reward.reward_kwargs.overlong_buffer_cfg.log": _ALWAYS,
    "reward.reward_manager.*": "reward.name chooses the function",
    "reward.reward_model.*": _REWARD_MODEL,
    "reward_model.*": _REWARD_MODEL,
    "tool.use_batch_tool_calls": "each trajectory calls its tools independently of the others",
    "trainer.balance_batch": _ALWAYS,
    "trainer.default_hdfs_dir": "runs are written to trainer.default_local_dir",
    "trainer.del_local_ckpt_after_load": "a checkpoint is only removed by max_ckpt_to_keep",
    "trainer.esi_redundant_time": "a run can be killed at any time and resumed",
    "trainer.max_critic_ckpt_to_keep": "policy and critic are kept together",
    "trainer.ray_wait_register_center_timeout": _RAY,
    "trainer.rollout_data_dir": "runs always keep the rollouts: agent-r1 export-trajectories",
    "trainer.use_legacy_worker_impl": _BACKEND,
    "trainer.use_v1": _BACKEND,
    "trainer.v1.*": _BACKEND,
    "trainer.validation_data_dir": "runs always keep the rollouts: agent-r1 export-trajectories",
}

REFUSED: dict[str, str] = {
    "algorithm.rollout_correction.rollout_rs": "set rollout_is and mode=mask",
    "algorithm.rollout_correction.rollout_rs_threshold": (
        "set rollout_is_threshold and rollout_is_threshold_lower"
    ),
    "algorithm.rollout_correction.loss_type": "choose actor.policy_loss.loss_mode",
    "custom_reward_function.*": "write reward.name='file.py:function' (it receives a Trajectory)",
    "reward.custom_reward_function.*": (
        "write reward.name='file.py:function' (it receives a Trajectory)"
    ),
    "actor_rollout_ref.rollout.multi_turn.tool_config_path": "list the tools in tool.tools",
    "actor_rollout_ref.rollout.multi_turn.function_tool_path": "list the tools in tool.tools",
    "data.tool_config_path": "list the tools in tool.tools",
    "data.function_tool_path": "list the tools in tool.tools",
}
"""Names whose silence would change what is trained: an error that says what to write."""

REPLACED_VALUES: dict[tuple[str, Any], tuple[Any, str]] = {
    ("actor_rollout_ref.rollout.name", engine): (
        "embedded",
        f"{engine} is no dependency here: the embedded engine samples",
    )
    for engine in ("sglang", "hf")
}
"""(key, value) → (the value that is used instead, why)."""


def renamed(key: str) -> str | None:
    """Our name of ``key``, also where it reaches into a renamed mapping; ``None`` without one."""
    parts = key.split(".")
    for i in range(len(parts), 0, -1):
        ours = RENAMED.get(".".join(parts[:i]))
        if ours is not None:
            return ".".join([ours, *parts[i:]])
    return None


def lookup(table: dict[str, str], key: str) -> str | None:
    """The entry of ``table`` for ``key``, or for a pattern above it; ``None`` if there is none."""
    if key in table:
        return table[key]
    parts = key.split(".")
    if parts[-1] in table:
        return table[parts[-1]]
    patterns = (".".join([*parts[:i], "*"]) for i in range(1, len(parts) + 1))
    return next((table[p] for p in patterns if p in table), None)
