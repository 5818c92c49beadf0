"""Combinations of settings that are each right and together wrong.

``problems_of`` finds what cannot work, ``remarks_on`` what works and is easily overlooked.
Each check is one small generator; each message names the keys and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

from agent_r1.config.schema import Config, OptimConfig

ESTIMATORS = (
    "gae",
    "turn_gae",
    "grpo",
    "dr_grpo",
    "gigpo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "opd",
)
POLICY_LOSSES = ("vanilla", "ppo", "gspo", "cispo", "reinforce")
LOGGERS = ("console", "wandb", "tensorboard", "mlflow", "trackio")

WITH_CRITIC = ("gae", "turn_gae")
_APPENDING = ("retool", "nous", "search_r1")
"""Environments that never replace the context; others, and a context policy, may."""
WITH_GROUPS = ("grpo", "dr_grpo", "gigpo", "rloo", "reinforce_plus_plus_baseline")

Check = Callable[[Config], Iterator[str]]


def problems_of(config: Config) -> list[str]:
    """What makes this configuration impossible, in words, with the remedy; empty if nothing."""
    return [problem for check in _CHECKS for problem in check(config)]


def remarks_on(config: Config) -> list[str]:
    """What has no effect, or an effect that is easily overlooked."""
    return list(_remarks(config))


def needs_critic(config: Config) -> bool:
    """The estimator needs a value function. A user's own estimator says so in its registry."""
    return config.algorithm.adv_estimator in WITH_CRITIC


def needs_reference(config: Config) -> bool:
    """Some KL term compares with the reference policy."""
    return config.algorithm.use_kl_in_reward or config.actor_rollout_ref.actor.use_kl_loss


def _names(config: Config) -> Iterator[str]:
    yield from _known("algorithm.adv_estimator", config.algorithm.adv_estimator, ESTIMATORS)
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    yield from _known("actor_rollout_ref.actor.policy_loss.loss_mode", loss, POLICY_LOSSES)
    for logger in config.trainer.logger:
        yield from _known("trainer.logger", logger, (*LOGGERS, "jsonl"))


def _known(key: str, name: str, known: tuple[str, ...]) -> Iterator[str]:
    """A name is one of ours, a path, or announced by an installed package."""
    if name in known or "." in name or ":" in name:
        return
    groups = (group for group in entry_points().groups if group.startswith("agent_r1."))
    if any(name in entry_points(group=group).names for group in groups):
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? Known: " if near else "known: "
    yield f"{key}={name} is unknown; {hint}{', '.join(known)}, or a path such as 'file.py:name'"


def _batches(config: Config) -> Iterator[str]:
    batch = config.data.train_batch_size
    for key, mini in (
        ("actor_rollout_ref.actor", config.actor_rollout_ref.actor.ppo_mini_batch_size),
        ("critic", config.critic.ppo_mini_batch_size),
    ):
        if mini is not None and (mini > batch or batch % mini):
            yield (
                f"{key}.ppo_mini_batch_size={mini} does not divide data.train_batch_size={batch} "
                "(both count prompts); make it a divisor, or null for one update per step"
            )


def _groups(config: Config) -> Iterator[str]:
    n, estimator = config.actor_rollout_ref.rollout.n, config.algorithm.adv_estimator
    if n == 1 and estimator in WITH_GROUPS:
        yield (
            f"algorithm.adv_estimator={estimator} compares the trajectories of a prompt, and "
            "actor_rollout_ref.rollout.n=1 gives each an advantage of 0; set n to 2 or more, or "
            "use reinforce_plus_plus, remax or gae"
        )
    if n == 1 and config.algorithm.filter_groups.enable:
        yield (
            "algorithm.filter_groups.enable=true drops groups that score alike, and with "
            "actor_rollout_ref.rollout.n=1 every group does; set n to 2 or more"
        )


def _only_appends(config: Config) -> bool:
    """Whether a response certainly stays in one window: nothing replaces the context."""
    if config.envs:  # each entry is looked at by itself
        return False
    return config.tool.context.policy == "none" and config.tool.env in _APPENDING


def _lengths(config: Config) -> Iterator[str]:
    data, rollout = config.data, config.actor_rollout_ref.rollout
    window = rollout.max_model_len
    if rollout.response_length is not None and rollout.response_length > data.max_response_length:
        yield (
            f"actor_rollout_ref.rollout.response_length={rollout.response_length} (one turn) is "
            f"above data.max_response_length={data.max_response_length} (all turns); lower it or "
            "leave it null"
        )
    if window is not None and window <= data.max_prompt_length:
        yield (
            f"actor_rollout_ref.rollout.max_model_len={window} leaves no room after a prompt of "
            f"data.max_prompt_length={data.max_prompt_length}; leave it null for the sum of "
            "prompt and response"
        )
    if window is not None and data.max_response_length > window and _only_appends(config):
        yield (
            f"data.max_response_length={data.max_response_length} is above "
            f"actor_rollout_ref.rollout.max_model_len={window}; lower it, or leave max_model_len "
            "null"
        )
    overlong = config.reward.overlong_buffer
    if overlong.enable and overlong.len >= data.max_response_length:
        yield (
            f"reward.overlong_buffer.len={overlong.len} must be below data.max_response_length="
            f"{data.max_response_length}: it is the zone before that limit"
        )


def _critic(config: Config) -> Iterator[str]:
    if needs_critic(config) or any(mark in config.algorithm.adv_estimator for mark in ".:"):
        return
    estimator = config.algorithm.adv_estimator
    if config.trainer.critic_warmup:
        yield (
            f"trainer.critic_warmup={config.trainer.critic_warmup} needs a critic, and "
            f"algorithm.adv_estimator={estimator} has none; set it to 0 or use gae"
        )
    policy = config.algorithm.outcome_policy
    for name in ("turn_limit", "length", "context", "timeout"):
        if getattr(policy, name) == "bootstrap":
            yield (
                f"algorithm.outcome_policy.{name}=bootstrap takes the critic's value, and "
                f"algorithm.adv_estimator={estimator} has no critic; use count, mask or penalise, "
                "or the estimator gae"
            )


def _correction(config: Config) -> Iterator[str]:
    correction = config.algorithm.rollout_correction
    if correction.rollout_is_threshold_lower >= correction.rollout_is_threshold:
        yield (
            "algorithm.rollout_correction.rollout_is_threshold_lower="
            f"{correction.rollout_is_threshold_lower} must be below rollout_is_threshold="
            f"{correction.rollout_is_threshold}"
        )
    if correction.bypass_mode and correction.rollout_is not in ("auto", "none"):
        yield (
            "algorithm.rollout_correction.bypass_mode=true takes the engine's log-probabilities "
            f"as the old ones, so that rollout_is={correction.rollout_is} would weigh everything "
            "with 1; set one of the two"
        )


def _overlap(config: Config) -> Iterator[str]:
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    key = "actor_rollout_ref.rollout"
    if rollout.min_group is not None and rollout.min_group > rollout.n:
        yield f"{key}.min_group={rollout.min_group} is above {key}.n={rollout.n}; lower it"
    if rollout.min_group == 1 and config.algorithm.adv_estimator in WITH_GROUPS:
        yield (
            f"{key}.min_group=1 leaves nothing for algorithm.adv_estimator="
            f"{config.algorithm.adv_estimator} to compare; set 2 or more"
        )
    if rollout.over_sampling and trainer.stale == "wait" and trainer.max_staleness:
        yield (
            f"{key}.over_sampling={rollout.over_sampling} cuts stragglers off, for which "
            "trainer.stale=wait waits; set trainer.stale=drop or over_sampling=0"
        )
    if config.data.curriculum.solved <= config.data.curriculum.hopeless:
        yield "data.curriculum.solved must be above data.curriculum.hopeless"


def _schedules(config: Config) -> Iterator[str]:
    steps = config.trainer.total_training_steps
    sections: tuple[tuple[str, OptimConfig], ...] = (
        ("actor_rollout_ref.actor.optim", config.actor_rollout_ref.actor.optim),
        ("critic.optim", config.critic.optim),
    )
    for key, optim in sections:
        if not all(0 <= beta < 1 for beta in optim.betas):
            yield f"{key}.betas={list(optim.betas)} must both be at least 0 and below 1"
    warmup = config.trainer.critic_warmup
    if steps is not None and warmup >= steps:
        yield (
            f"trainer.critic_warmup={warmup} leaves no step of trainer.total_training_steps="
            f"{steps} to the policy; lower it"
        )


def _run(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if (trainer.resume_mode == "resume_path") != (trainer.resume_from_path is not None):
        yield (
            f"trainer.resume_mode={trainer.resume_mode} with trainer.resume_from_path="
            f"{trainer.resume_from_path or 'null'}: set resume_mode=resume_path and the path "
            "together, or neither"
        )
    if trainer.layout == "apart" and config.actor_rollout_ref.rollout.name != "vllm":
        yield (
            "trainer.layout=apart places vLLM servers, and actor_rollout_ref.rollout.name="
            f"{config.actor_rollout_ref.rollout.name} runs inside of the trainer; set rollout.name="
            "vllm, or trainer.layout=colocated"
        )
    types = {config.actor_rollout_ref.model.dtype, config.actor_rollout_ref.actor.autocast}
    if trainer.device == "cpu" and "float16" in types:
        yield "trainer.device=cpu cannot train in float16; use bfloat16 or float32"


def _sandbox(config: Config) -> Iterator[str]:
    sandbox = config.sandbox
    if sandbox.executor == "http" and not sandbox.endpoints:
        yield (
            "sandbox.executor=http needs sandbox.endpoints, for example "
            "sandbox.endpoints='[\"http://127.0.0.1:8080\"]' after 'agent-r1 sandbox serve'"
        )
    if sandbox.executor == "ray" and config.trainer.nnodes == 1 and config.ray.address is None:
        yield (
            "sandbox.executor=ray starts a sandbox on every node of a Ray cluster, and none is "
            "named; set ray.address, or sandbox.executor=embedded"
        )
    if sandbox.executor == "embedded" and sandbox.endpoints:
        yield (
            "sandbox.endpoints is given and sandbox.executor=embedded would not use it; set "
            "sandbox.executor=http"
        )
    for endpoint in sandbox.endpoints:
        if not endpoint.startswith(("http://", "https://")):
            yield f"sandbox.endpoints: {endpoint!r} must begin with http:// or https://"


def _distillation(config: Config) -> Iterator[str]:
    settings, key = config.algorithm.distillation, "algorithm.distillation"
    if settings.teacher and settings.server:
        yield f"{key}.teacher and {key}.server are both given; a run has one teacher"
    if config.algorithm.adv_estimator == "opd" and not settings.given:
        yield (
            "algorithm.adv_estimator=opd needs a teacher; set algorithm.distillation.teacher to a "
            "model folder, or algorithm.distillation.server to an address"
        )
    if settings.server and settings.form == "exact":
        yield (
            f"{key}.form=exact needs whole distributions, which {key}.server does not give; set "
            f"{key}.form=topk, or use a local teacher"
        )
    if settings.server and config.actor_rollout_ref.rollout.temperature != 1:
        yield (
            f"{key}.server gives log-probabilities at temperature 1, and "
            "actor_rollout_ref.rollout.temperature="
            f"{config.actor_rollout_ref.rollout.temperature} samples at another; set it to 1, or "
            "use a local teacher"
        )


def _server(config: Config) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    key, url = "actor_rollout_ref.rollout.server.url", rollout.server.url
    if rollout.name == "openai" and not url:
        yield f"actor_rollout_ref.rollout.name=openai needs {key}, as http://127.0.0.1:8000/v1"
    if url and rollout.name != "openai":
        yield (
            f"{key} is given and actor_rollout_ref.rollout.name={rollout.name} would not use it; "
            "set actor_rollout_ref.rollout.name=openai"
        )
    if url and not url.startswith(("http://", "https://")):
        yield f"{key}={url!r} must begin with http:// or https://"


_CHECKS: tuple[Check, ...] = (
    _names,
    _batches,
    _groups,
    _lengths,
    _critic,
    _correction,
    _overlap,
    _schedules,
    _run,
    _sandbox,
    _distillation,
    _server,
)


def _remarks(config: Config) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    if rollout.top_p < 1 or rollout.top_k > 0:
        yield (
            "actor_rollout_ref.rollout.top_p or top_k cuts the sampled distribution while the "
            "trained one is whole; use top_p=1 and top_k=0 in training"
        )
    if config.actor_rollout_ref.ref.path and not needs_reference(config):
        yield (
            "actor_rollout_ref.ref.path has no effect: no KL term is in use; set "
            "actor_rollout_ref.actor.use_kl_loss or algorithm.use_kl_in_reward"
        )
    actor = config.actor_rollout_ref.actor
    if actor.loss_scale_factor and actor.loss_agg_mode != "seq-mean-token-sum-norm":
        yield (
            "actor_rollout_ref.actor.loss_scale_factor has no effect with loss_agg_mode="
            f"{actor.loss_agg_mode}; it belongs to seq-mean-token-sum-norm"
        )
    trainer = config.trainer
    correction = config.algorithm.rollout_correction
    if trainer.max_staleness and correction.rollout_is == "none" and not correction.bypass_mode:
        yield (
            f"trainer.max_staleness={trainer.max_staleness} with algorithm.rollout_correction."
            "rollout_is=none trains on older policies' trajectories as if they were the newest's; "
            "use auto, or bypass_mode=true"
        )
