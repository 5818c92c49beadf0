"""From a configuration to a running trainer: the one place where the packages are connected.

Everything that can be wrong is looked at in the order of its cost: names before files,
files before the tokenizer, the tokenizer before the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agent_r1.config.changes import continued_changes
from agent_r1.config.policy import CriticModelConfig, ModelConfig
from agent_r1.config.schema import AlgorithmConfig, Config
from agent_r1.data.loader import Loader, TaskLoader
from agent_r1.data.mixed import MixedLoader
from agent_r1.errors import ConfigError
from agent_r1.models.load import check_vocabulary, load_model
from agent_r1.models.lora import add_lora
from agent_r1.models.value import ValueModel
from agent_r1.monitor.run import RunFolder
from agent_r1.rollout.codec import Codec, open_codec
from agent_r1.rollout.context import ContextWriter
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.engines import ENGINES
from agent_r1.rollout.group import GroupRunner
from agent_r1.rollout.limits import Sampling
from agent_r1.tool.base import BaseToolEnv
from agent_r1.trainer.checkpoint import CheckpointStore
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.environments import (
    OpenedEnvironment,
    build_loop,
    compares_siblings,
    make_scorer,
    open_environments,
)
from agent_r1.trainer.memory import check_memory, frees_cache
from agent_r1.trainer.preflight import check_before_loading
from agent_r1.trainer.rl import Parts, RLTrainer
from agent_r1.trainer.tasks import load_split
from agent_r1.trainer.teacher import LocalTeacher, Teacher, require_same_tokens, server_teacher
from agent_r1.trainer.validation import Validator
from agent_r1.trainer.worker import LocalWorker, optimizer_steps
from agent_r1.types import Task
from agent_r1.under_way import under_way

_LOG = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Train as configured; returns the run folder.

    Raises :class:`agent_r1.errors.AgentR1Error` with a remedy for whatever is wrong, and
    ``KeyboardInterrupt`` after a stop request, when everything is saved.
    """
    with ExitStack() as stack:
        parts, resume_from = build_parts(config, stack)
        RLTrainer(config, parts).fit(resume_from)
    return config.trainer.run_dir


def build_parts(
    config: Config, stack: ExitStack, make_worker: BuildWorker | None = None
) -> tuple[Parts, Path | None]:
    """Every part, each closed by ``stack``; and the checkpoint to continue from.

    ``make_worker`` is :func:`build_worker` unless several processes share the work.

    Whoever wants one part to be another takes these, replaces it and gives them to
    :class:`RLTrainer`.
    """
    shown = "console" in config.trainer.logger
    with under_way("opening the environments", shown=shown):
        check_before_loading(config)
        credit = CreditAssigner(algorithm_of(config))
        envs = stack.enter_context(open_environments(config))
    compares = compares_siblings(envs)
    checkpoints = CheckpointStore(
        config.trainer.run_dir / "checkpoints",
        keep=config.trainer.max_ckpt_to_keep,
        every_minutes=config.trainer.save_minutes,
    )
    resume_from = checkpoint_to_resume(config, checkpoints)
    changes = continued_changes(resume_from, config, accepted=config.trainer.accept_changes)
    with under_way("reading the data", shown=shown):
        codec = _open_codec(config, envs)
        loader, held_out = _load_data(config, codec, envs)
    steps = config.trainer.total_training_steps or (
        config.trainer.total_epochs * loader.batches_per_epoch
    )
    told = check_memory(config, pick_device(config.trainer.device))
    run = stack.enter_context(RunFolder.open(config, changes))
    if told:
        run.announce(told)
    with run.phase("loading the model"):
        worker = (make_worker or build_worker)(config, credit, codec.tokenizer, steps)
        teacher = build_teacher(config, codec.tokenizer)
    with run.phase("starting the engine"):
        engine = build_engine(config, worker.policy, codec.tokenizer)
    sampling = train_sampling(config)
    groups = GroupRunner(
        build_loop(envs, engine, codec),
        engine,
        make_scorer(envs),
        max_concurrency=config.actor_rollout_ref.rollout.max_concurrency,
        compares=compares,
    )
    parts = Parts(
        worker=worker,
        engine=engine,
        groups=groups,
        sampling=sampling,
        loader=loader,
        validator=build_validator(config, held_out, groups, sampling),
        credit=credit,
        run=run,
        checkpoints=checkpoints,
        pad_id=codec.pad_id,
        teacher=teacher,
    )
    return parts, resume_from


def _open_codec(config: Config, envs: Sequence[OpenedEnvironment]) -> Codec:
    codec = open_codec(config.actor_rollout_ref.model)
    codec.check_template()
    if not all(isinstance(each.env, BaseToolEnv) for each in envs):
        ContextWriter(codec).check()
    return codec


def algorithm_of(config: Config) -> AlgorithmConfig:
    """The ``algorithm`` section with what ``auto`` stands for in this run."""
    algorithm, correction = config.algorithm, config.algorithm.rollout_correction
    if correction.rollout_is != "auto":
        return algorithm
    overlaps = config.trainer.max_staleness > 0 and not correction.bypass_mode
    chosen = correction.model_copy(update={"rollout_is": "token" if overlaps else "none"})
    return algorithm.model_copy(update={"rollout_correction": chosen})


# --- data --------------------------------------------------------------------------------


def _load_data(
    config: Config, codec: Codec, envs: Sequence[OpenedEnvironment]
) -> tuple[Loader, Sequence[Task]]:
    data = config.data
    seed = config.trainer.seed if data.seed is None else data.seed
    train = load_split(config, codec, "train", seed)
    held_out = load_split(config, codec, "val", seed)
    validation = tuple(task for tasks in held_out.values() for task in tasks)
    if not config.envs:
        (tasks,) = train.values()
        size = data.train_batch_size
        return TaskLoader(tasks, size, shuffle=data.shuffle, seed=seed), validation
    weights = {env.name: env.weight for env in envs if env.weight is not None}
    mixed = MixedLoader(
        train, data.train_batch_size, weights=weights, shuffle=data.shuffle, seed=seed
    )
    return mixed, validation


def build_validator(
    config: Config, tasks: Sequence[Task], groups: GroupRunner, sampling: Sampling
) -> Validator:
    """Held-out tasks with the sampling of ``rollout.val_kwargs``."""
    val = config.actor_rollout_ref.rollout.val_kwargs
    return Validator(
        tasks,
        groups,
        replace(sampling, temperature=val.temperature, top_p=val.top_p, top_k=max(val.top_k, 0)),
        n=val.n,
    )


# --- model and engine --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Networks:
    """What a worker computes with."""

    policy: Any
    reference: Any | None
    critic: ValueModel | None


BuildWorker = Callable[[Config, CreditAssigner, Any, int], Any]
"""Makes the worker of a run: :func:`build_worker`, or that of several ranks."""


def build_worker(
    config: Config, credit: CreditAssigner, tokenizer: Any, training_steps: int
) -> LocalWorker:
    """Policy, and reference and critic where the algorithm asks for them, in this process."""
    networks = build_networks(config, credit)
    check_vocabulary(networks.policy, tokenizer)
    options = worker_options(config, training_steps)
    return LocalWorker(
        networks.policy,
        config.actor_rollout_ref.actor,
        reference=networks.reference,
        critic=networks.critic,
        tokenizer=tokenizer,
        **options,
    )


def build_networks(
    config: Config, credit: CreditAssigner, *, device: str | None = None
) -> Networks:
    """The networks of a run on ``device``, seeded; ``None`` is the configured one."""
    policy, reference = build_policy(config, device), None
    roles, load = config.actor_rollout_ref, model_loader(config)
    base_is_reference = roles.model.lora_rank > 0 and roles.ref.path is None
    if (roles.actor.use_kl_loss or credit.needs_ref) and not base_is_reference:
        home = "cpu" if roles.ref.offload else device
        reference = load(roles.ref.path or roles.model.path, device=home)
    critic = None
    if credit.needs_values:
        critic = ValueModel(load(config.critic.model.path or roles.model.path, device=device))
        _add_adapters(critic.trunk, config.critic.model)
    return Networks(policy, reference, critic)


def build_policy(config: Config, device: str | None = None) -> Any:
    """The policy's network with its adapters, as it is before the first step."""
    import torch

    model = config.actor_rollout_ref.model
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    torch.manual_seed(config.trainer.seed)
    policy = model_loader(config)(model.path, device=device)
    _add_adapters(policy, model)
    return policy


def worker_options(config: Config, training_steps: int) -> dict[str, Any]:
    """What a worker is told besides its networks: how many steps there will be, seeds."""
    roles, actor = config.actor_rollout_ref, config.actor_rollout_ref.actor
    prompts = config.data.train_batch_size
    mini_batch = config.critic.ppo_mini_batch_size or actor.ppo_mini_batch_size
    return {
        "temperature": roles.rollout.temperature,
        "total_steps": optimizer_steps(
            training_steps - config.trainer.critic_warmup,
            prompts,
            actor.ppo_mini_batch_size,
            actor.ppo_epochs,
        ),
        "loss_divisor": config.data.max_response_length,
        "critic_config": config.critic,
        "critic_total_steps": optimizer_steps(
            training_steps, prompts, mini_batch, config.critic.ppo_epochs
        ),
        "seed": config.trainer.seed,
        "distillation_coef": (
            1.0 if config.algorithm.adv_estimator == "opd" else config.algorithm.distillation.coef
        ),
    }


def build_teacher(config: Config, tokenizer: Any) -> Teacher | None:
    """The teacher of a distillation, where one is configured."""
    settings, roles = config.algorithm.distillation, config.actor_rollout_ref
    if settings.server:
        return server_teacher(settings)
    if not settings.teacher:
        return None
    trusted = roles.model.trust_remote_code
    require_same_tokens(tokenizer, settings.teacher, trust_remote_code=trusted)
    return LocalTeacher(
        model_loader(config)(settings.teacher),
        temperature=roles.rollout.temperature,
        max_tokens=roles.actor.ppo_max_token_len_per_gpu,
    )


def _add_adapters(model: Any, settings: ModelConfig | CriticModelConfig) -> None:
    if settings.lora_rank:
        add_lora(
            model,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            targets=settings.target_modules,
        )


def model_loader(config: Config) -> Callable[..., Any]:
    """``load(path)`` with the device, the type and the safety that are configured."""
    model, default = config.actor_rollout_ref.model, pick_device(config.trainer.device)
    dtype = model.dtype_on(default)

    def load(path: str, *, device: str | None = None) -> Any:
        return load_model(
            path,
            dtype,
            device or default,
            trust_remote_code=model.trust_remote_code,
            gradient_checkpointing=model.enable_gradient_checkpointing,
        )

    return load


def pick_device(device: str) -> str:
    """``auto`` is the GPU if there is one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch sees no GPU; use trainer.device=auto")
    return device


def build_engine(config: Config, model: Any, tokenizer: Any) -> Engine:
    """The configured generation engine on the policy's weights."""
    rollout = config.actor_rollout_ref.rollout
    name = engine_name(config)
    if name == "vllm":
        from agent_r1.rollout.engines.vllm_open import open_vllm

        model_config, device = config.actor_rollout_ref.model, pick_device(config.trainer.device)
        return open_vllm(
            rollout,
            Path(model_config.path),
            max_model_len=config.context_window,
            dtype=model_config.dtype_on(device) if rollout.dtype == "auto" else rollout.dtype,
            device=device,
            log_folder=config.trainer.run_dir,
            awaits=config.trainer.layout == "apart",
        )
    return ENGINES.get(name)(
        model,
        tokenizer,
        max_model_len=config.context_window,
        max_slots=rollout.max_num_seqs,
        memory_share=rollout.gpu_memory_utilization,
        deterministic=rollout.deterministic and not config.trainer.max_staleness,
        readmit_after=rollout.readmit_after,
        dtype=None if rollout.dtype == "auto" else rollout.dtype,
        free_when_idle=frees_cache(config, pick_device(config.trainer.device)),
    )


def engine_name(config: Config) -> str:
    """``rollout.name`` with what ``auto`` stands for on this machine."""
    name = config.actor_rollout_ref.rollout.name
    if name != "auto":
        return name
    on_gpu = pick_device(config.trainer.device) == "cuda"
    return "vllm" if on_gpu and find_spec("vllm") is not None else "embedded"


def train_sampling(config: Config) -> Sampling:
    """How training samples; loops add their environment's own stop strings."""
    rollout = config.actor_rollout_ref.rollout
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=max(rollout.top_k, 0),
        stop=rollout.stop,
        stop_token_ids=rollout.stop_token_ids,
        seed=config.trainer.seed,
    )


# --- resuming ----------------------------------------------------------------------------


def checkpoint_to_resume(config: Config, checkpoints: CheckpointStore) -> Path | None:
    """The checkpoint that ``trainer.resume_mode`` asks for, or None for a fresh start."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        if trainer.resume_from_path is None:
            raise ConfigError("trainer.resume_mode=resume_path needs trainer.resume_from_path")
        return Path(trainer.resume_from_path)
    if trainer.resume_mode == "disable":  # the run folder moves what is there aside
        return None
    return checkpoints.latest()
