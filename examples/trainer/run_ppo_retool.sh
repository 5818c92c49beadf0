#!/usr/bin/env bash
# ReTool with PPO: a critic, generalised advantage estimation, code run in the sandbox.
#
#   bash run_ppo_retool.sh
#   MODEL_PATH=./my-model DATA_DIR=./data/retool bash run_ppo_retool.sh trainer.total_training_steps=20
#
# Every setting below can be given again after the script's name; the last one counts.
# Running the same command again continues an interrupted run. Generation stops at </code>
# because the environment says so; a further stop string needs no file either:
#   bash run_ppo_retool.sh actor_rollout_ref.rollout.stop='["</code>"]'
#
# Memory: the defaults (Qwen3-4B, all weights trained) run on one card of 80 GB, of which 47 GiB
# are used, with 120 GiB of the machine's memory for float32 weights and moments. Without that much:
#   bash run_ppo_retool.sh actor_rollout_ref.model.lora_rank=32 critic.model.lora_rank=32
# On eight cards of 80 GB the same settings fit, and so do weights and moments on the cards:
#   bash run_ppo_retool.sh trainer.n_gpus_per_node=8 actor_rollout_ref.actor.optim.offload=false \
#     critic.optim.offload=false
# `agent-r1 memory` prints the plan of any command; no plan of several cards was checked on cards.
set -euo pipefail

MODEL_PATH=${MODEL_PATH:-russwest404/Qwen3-4B-ReTool-SFT}
DATA_DIR=${DATA_DIR:-./data/retool}
EXPERIMENT=${EXPERIMENT:-ppo-retool}

settings=(
    algorithm.adv_estimator=gae
    algorithm.gamma=1.0
    algorithm.lam=1.0

    data.train_files="$DATA_DIR/train.parquet"
    data.val_files="$DATA_DIR/val.parquet"
    data.train_batch_size=128
    data.max_prompt_length=2048
    data.max_response_length=8192

    actor_rollout_ref.model.path="$MODEL_PATH"
    actor_rollout_ref.model.enable_gradient_checkpointing=true
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.optim.offload=true
    actor_rollout_ref.actor.ppo_mini_batch_size=32
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.actor.clip_ratio_low=0.2
    actor_rollout_ref.actor.clip_ratio_high=0.28
    actor_rollout_ref.rollout.n=1
    actor_rollout_ref.rollout.temperature=1.0
    critic.optim.lr=1e-5
    critic.optim.offload=true

    tool.env=retool
    tool.tools='["python"]'
    tool.max_turns=8
    reward.name=retool

    trainer.project_name=retool
    trainer.experiment_name="$EXPERIMENT"
    trainer.logger='["console"]' # '["console","wandb"]' once wandb is installed
    trainer.total_training_steps=250
    trainer.critic_warmup=5
    trainer.test_freq=10
    trainer.save_freq=25
    trainer.max_ckpt_to_keep=2
)
exec agent-r1 train "${settings[@]}" "$@"
