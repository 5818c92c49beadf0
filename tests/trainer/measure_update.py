"""One policy update in a process of its own: the peak of its memory, without the imports.

Prints measured and planned bytes as JSON. Arguments: a JSON object with ``lora_rank``,
``checkpointing``, ``dtype`` and ``reshard`` settings. A process that is one of several (``RANK``,
``WORLD_SIZE`` …) trains on its shards.
"""

import ctypes
import dataclasses
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import peft  # noqa: F401  (imports are no part of what is measured)
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from agent_r1.config.load import load_config
from agent_r1.data.batch import Batch
from agent_r1.distributed.ranks import joined, started_as_rank
from agent_r1.distributed.shard import shard_model
from agent_r1.distributed.worker import RankWorker
from agent_r1.models.load import enable_packing, prepare_training
from agent_r1.models.lora import add_lora
from agent_r1.testing import make_trajectory
from agent_r1.trainer import memory
from agent_r1.trainer.worker import LocalWorker
from agent_r1.types import Reward

ROWS, LENGTH = 8, 512


def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(field)


def batch():
    rows = []
    for index in range(ROWS):
        made = make_trajectory(["x" * (LENGTH - 8)], prompt=chr(97 + index) * 8)
        rows.append(
            dataclasses.replace(made, group_id=str(index), index=0, reward=Reward(index % 2))
        )
    return Batch.from_trajectories(rows, 0)


def model(dtype):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=False,
    )
    made = Qwen3ForCausalLM(config).eval().to(getattr(torch, dtype))
    enable_packing(made)
    return made


def main(settings):
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    overrides = {
        "actor_rollout_ref.model.lora_rank": settings.get("lora_rank", 0),
        "actor_rollout_ref.model.dtype": settings.get("dtype", "float32"),
        "actor_rollout_ref.model.enable_gradient_checkpointing": settings.get(
            "checkpointing", False
        ),
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": ROWS * LENGTH // world,
        "actor_rollout_ref.actor.fsdp_config.reshard_after_forward": settings.get("reshard"),
        "actor_rollout_ref.actor.fsdp_config.gradient_sync": settings.get("sync"),
        "actor_rollout_ref.rollout.max_num_seqs": 1,
        "data.max_prompt_length": 8,
        "data.max_response_length": 8,
    }
    config = load_config(None, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    data = batch()
    advantages = data.reward[:, None] * data.loss_mask
    before = resident("VmRSS")
    policy = model(settings.get("dtype", "float32"))
    sizes = memory.network_of(policy, settings.get("lora_rank", 0))
    prepare_training(policy, gradient_checkpointing=settings.get("checkpointing", False))
    if settings.get("lora_rank"):
        add_lora(policy, rank=settings["lora_rank"], alpha=16)
    plan = memory.plan_memory(config, device="cpu", policy=sizes)
    planned = plan.device_need("policy update")
    with ExitStack() as stack:
        if not started_as_rank():
            worker = LocalWorker(policy, config.actor_rollout_ref.actor)
        else:
            ranks = stack.enter_context(joined("cpu", 60.0))
            fsdp = config.actor_rollout_ref.actor.fsdp_config
            shard_model(
                policy,
                ranks.mesh(),
                reshard_after_forward=fsdp.reshards("cpu"),
                reduce_every_pass=fsdp.syncs_every_pass("cpu"),
            )
            worker = RankWorker(policy, config.actor_rollout_ref.actor, ranks=ranks)
            # Nothing samples here.
            planned -= next(p for p in plan.resident if p.name.startswith("the engine")).device
        worker.update_policy(data, None, advantages)  # moments exist from here on
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        worker.update_policy(data, None, advantages)
        measured = resident("VmHWM") - before
    sys.stdout.write(json.dumps({"measured": measured, "planned": planned}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
