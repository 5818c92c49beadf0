"""Training with one process or with several that were started together.

Every process calls :func:`train` with the same configuration. Rank 0 runs the training loop
(tasks, sampling, tools, credit, checkpoints, logs); the other ranks hold their shards and do
what it says, from the first step to the last.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from agent_r1.config.policy import ActorConfig, CriticConfig
from agent_r1.config.schema import Config
from agent_r1.distributed.launch import restarts_so_far
from agent_r1.distributed.ranks import Ranks, joined, started_as_rank
from agent_r1.distributed.shard import shard_model
from agent_r1.distributed.worker import RankWorker, ShardedWorker
from agent_r1.errors import ConfigError
from agent_r1.models.load import check_vocabulary, torch_dtype
from agent_r1.trainer.build import (
    algorithm_of,
    build_networks,
    build_parts,
    build_policy,
    engine_name,
    pick_device,
    worker_options,
)
from agent_r1.trainer.build import train as train_alone
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.rl import RLTrainer

T = TypeVar("T", ActorConfig, CriticConfig)

_OF_ONE_PROCESS: Final = {
    "muon": "orthogonalises whole matrices, and several processes hold shards of them: its updates "
    "differ from those of one process. Set it to adamw",
    "adamw_8bit": "keeps moments in blocks of a process's shard, which no other number of "
    "processes could continue. Set it to adamw, with fsdp_config.optimizer_offload=true where a "
    "GPU is too small for the moments",
}
"""Why optimizers are refused on shards."""


def train(config: Config) -> Path | None:
    """Train as configured; the run folder, or ``None`` on a rank that does not lead.

    A process that is no rank trains by itself. Raises what
    :func:`agent_r1.trainer.build.train` raises, and :class:`RankError` where a rank is lost.
    """
    if not started_as_rank():
        return train_alone(config)
    check_optimizers(config)
    with joined(pick_device(config.trainer.device), config.actor_rollout_ref.nccl_timeout) as ranks:
        if ranks.rank == 0:
            return lead(config, ranks)
        follow(ranks)
    return None


def check_optimizers(config: Config) -> None:
    """Raise :class:`ConfigError` for what is not the same computation on sharded weights."""
    sections = {"actor_rollout_ref.actor.optim": config.actor_rollout_ref.actor.optim}
    if CreditAssigner(algorithm_of(config)).needs_values:
        sections["critic.optim"] = config.critic.optim
    for key, optim in sections.items():
        if optim.name in _OF_ONE_PROCESS:
            raise ConfigError(f"{key}.name={optim.name} {_OF_ONE_PROCESS[optim.name]}")


def lead(config: Config, ranks: Ranks) -> Path:
    """The training loop, on rank 0."""

    def make_worker(
        config: Config, credit: CreditAssigner, tokenizer: Any, steps: int
    ) -> ShardedWorker:
        # An engine of this process computes with it; vLLM has its own.
        shell = build_policy(config, "cpu" if engine_name(config) == "vllm" else None)
        check_vocabulary(shell, tokenizer)
        with ranks.exchange():
            ranks.tell((config, steps))
            own = build_rank(config, ranks, steps)
        timeout_s = config.actor_rollout_ref.nccl_timeout
        return ShardedWorker(own, shell, tokenizer, timeout_s)

    with ExitStack() as stack:
        stack.callback(ranks.let_go)
        parts, resume_from = build_parts(config, stack, make_worker)
        if restarts := restarts_so_far():
            parts.run.announce(f"restart {restarts} of at most {config.trainer.max_restarts}")
        RLTrainer(config, parts).fit(resume_from)
    return config.trainer.run_dir


def follow(ranks: Ranks) -> None:
    """What the other ranks do: build their shards when told to, then serve.

    Signals go to rank 0 as well, which finishes what is under way with their help and lets
    them go; its death ends them.
    """
    with _deaf():
        command = ranks.hear()
        if command is None:
            return
        config, steps = command
        build_rank(config, ranks, steps).serve(config.actor_rollout_ref.nccl_timeout)


def build_rank(config: Config, ranks: Ranks, training_steps: int) -> RankWorker:
    """This rank's shards of the networks, from the same files and seeds on every rank."""
    networks = build_networks(config, CreditAssigner(algorithm_of(config)), device="cpu")
    model = config.actor_rollout_ref.model
    compute = torch_dtype(model.dtype_on(ranks.device_type))
    actor, ref, critic = (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.ref,
        config.critic,
    )
    for network, settings, offload in (
        (networks.policy, actor.fsdp_config, actor.optim.offload),
        (networks.reference, ref.fsdp_config, ref.offload),
        (networks.critic, critic.model.fsdp_config, critic.optim.offload),
    ):
        if network is not None:
            shard_model(
                network,
                ranks.mesh(settings.fsdp_size),
                compute=compute,
                offload=offload or settings.param_offload or settings.optimizer_offload,
                reshard_after_forward=settings.reshards(ranks.device_type),
                reduce_every_pass=settings.syncs_every_pass(ranks.device_type),
            )
    options = worker_options(config, training_steps)
    return RankWorker(
        networks.policy,
        _with_shards_offloaded(actor),
        reference=networks.reference,
        critic=networks.critic,
        ranks=ranks,
        **options | {"critic_config": _with_shards_offloaded(critic)},
    )


def _with_shards_offloaded(settings: T) -> T:
    """``optim.offload`` is done by the shards, which lie in host memory themselves."""
    optim = settings.optim.model_copy(update={"offload": False})
    return settings.model_copy(update={"optim": optim})


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore what a terminal or a scheduler sends to every process of a job."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, signal.SIG_IGN) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
