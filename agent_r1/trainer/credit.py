"""From scored trajectories to advantages: the wiring of ``algorithms/`` for one step.

Everything that is configured under ``algorithm`` happens here, in this order: what each
outcome means, KL to the reference in the reward, process rewards, the estimator, and the
correction for an engine that samples from a slightly different policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent_r1.algorithms.covariance import clip_cov
from agent_r1.algorithms.distillation import gap_advantage, silent
from agent_r1.algorithms.episodes import AdvantageInputs, AdvantageResult
from agent_r1.algorithms.kl import kl_reward, make_kl_controller
from agent_r1.algorithms.masked import masked_mean, zero_outside
from agent_r1.algorithms.off_policy import importance_weights, trusted_mask
from agent_r1.algorithms.outcomes import OutcomePolicy
from agent_r1.algorithms.registry import bind, resolve_advantage
from agent_r1.algorithms.shaping import has_signal
from agent_r1.algorithms.stats import explained_variance
from agent_r1.config.schema import AlgorithmConfig
from agent_r1.data.batch import Batch
from agent_r1.models.value import Values
from agent_r1.types import Trajectory

CRITIC_ESTIMATORS = frozenset({"gae", "turn_gae"})
"""Estimators that read values; a registered one says so with ``needs_values = True``."""


@dataclass(frozen=True, slots=True)
class Credit:
    """What a step's trajectories are worth, token by token."""

    batch: Batch
    """With penalties in ``reward`` and masked outcomes taken out of ``loss_mask``."""
    old_logprobs: Tensor | None  # [B, T]; None: those of the policy as it is
    advantages: Tensor  # [B, T]
    returns: Tensor | None  # [B, T], what a critic learns
    weights: Tensor | None  # [B, T], off-policy correction
    metrics: dict[str, float]


class CreditAssigner:
    """Configured once; its KL controller is part of every checkpoint."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._config = config
        self._estimator = resolve_advantage(config.adv_estimator)
        names = ("gamma", "lam", "norm_adv_by_std_in_grpo", "process_reward_coef")
        shared = {name: getattr(config, name) for name in names}
        if config.adv_estimator == "opd":
            shared["clip"] = config.distillation.clip
        self._advantages = bind(self._estimator, options=config.adv_kwargs, shared=shared)
        if config.adv_estimator == "opd" and config.distillation.form != "sampled":
            self._advantages = silent
        policy = config.outcome_policy
        table = {name: getattr(policy, name) for name in _CUT_SHORT}
        self._outcomes = OutcomePolicy.from_options(table, penalty=policy.penalty)
        self._kl = make_kl_controller(**config.kl_ctrl.model_dump())

    @property
    def needs_values(self) -> bool:
        """Whether a critic is to be trained."""
        declared = getattr(self._estimator, "needs_values", False)
        return bool(declared) or self._config.adv_estimator in CRITIC_ESTIMATORS

    @property
    def needs_greedy(self) -> bool:
        """Whether each task's greedy trajectory is the baseline."""
        return self._config.adv_estimator == "remax"

    @property
    def needs_ref(self) -> bool:
        """Whether the reward contains a KL term."""
        return self._config.use_kl_in_reward

    @property
    def needs_logprobs(self) -> bool:
        """Whether credit depends on the trainer's own log-probabilities before the update."""
        settings = self._config
        asked = settings.use_kl_in_reward or settings.distillation.as_advantage
        return self._corrected or asked or settings.clip_cov.ratio > 0

    @property
    def _corrected(self) -> bool:
        correction = self._config.rollout_correction
        return correction.rollout_is not in ("auto", "none") and not correction.bypass_mode

    @property
    def max_sampling_rounds(self) -> int:
        """Batches of prompts that one step may sample."""
        filtering = self._config.filter_groups
        return filtering.max_num_gen_batches if filtering.enable else 1

    def informative(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Members of groups whose outcome metric varies (DAPO, equation 11), or all."""
        filtering = self._config.filter_groups
        if not filtering.enable:
            return list(trajectories)
        groups: dict[str, list[Trajectory]] = {}
        for trajectory in trajectories:
            groups.setdefault(trajectory.group_id, []).append(trajectory)
        alive = [
            members
            for members in groups.values()
            if has_signal([_outcome_metric(t, filtering.metric) for t in members])
        ]
        return [trajectory for members in alive for trajectory in members]

    def assign(
        self,
        batch: Batch,
        trajectories: Sequence[Trajectory],
        recomputed: Tensor | None,
        ref_logprobs: Tensor | None,
        values: Values | None,
        greedy_rewards: Mapping[str, float] | None = None,
        teacher_logprobs: Tensor | None = None,
    ) -> Credit:
        """Advantages of a batch that was laid out from ``trajectories``.

        ``recomputed`` (see :attr:`needs_logprobs`) and ``ref_logprobs`` are ``[B, T]`` of the
        policy before the update and of the reference, ``teacher_logprobs`` of the teacher of a
        distillation; ``greedy_rewards`` maps group ids (ReMax).
        """
        owners = [t for t in trajectories for _ in t.samples()]
        rows = self._outcomes.apply([t.outcome for t in owners], batch.reward, batch.loss_mask)
        trained = dataclasses.replace(batch, reward=rows.reward, loss_mask=rows.loss_mask)
        old = batch.behavior_logprobs if self._config.rollout_correction.bypass_mode else recomputed
        metrics: dict[str, float] = {}
        token_reward = None
        if ref_logprobs is not None and recomputed is not None and self._config.use_kl_in_reward:
            token_reward = self._kl_in_reward(trained, recomputed, ref_logprobs, metrics)
        inputs = AdvantageInputs(
            loss_mask=rows.loss_mask,
            reward=rows.reward,
            group_id=batch.group_id,
            trajectory_id=batch.trajectory_id,
            segment=batch.segment,
            turn_index=batch.turn_index,
            turn_reward=batch.turn_reward,
            values=None if values is None else values.tokens,
            token_reward=token_reward,
            teacher_gap=_gap(teacher_logprobs, recomputed, rows.loss_mask, metrics),
            terminated=batch.terminated,
            truncated=rows.truncated,
            bootstrap_value=None if values is None else _last_segment(batch, values.final),
            greedy_reward=_greedy(owners, greedy_rewards),
            state_id=_state_ids(owners) if self._config.adv_estimator == "gigpo" else None,
            counted=rows.counted,
        )
        result = self._distilled(inputs, self._advantages(inputs))
        if recomputed is not None and self._config.clip_cov.ratio > 0:
            bounds = self._config.clip_cov.model_dump()
            kept = clip_cov(result.advantages, recomputed, rows.loss_mask, **bounds)
            result = dataclasses.replace(result, advantages=kept)
        metrics |= _summary(trained, result.advantages, result.returns, values)
        trained, weights = self._correct(trained, recomputed, metrics)
        return Credit(trained, old, result.advantages, result.returns, weights, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"kl": dict(self._kl.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kl.load_state_dict(state["kl"])

    def _distilled(self, inputs: AdvantageInputs, result: AdvantageResult) -> AdvantageResult:
        """The teacher's advantage beside that of another estimator."""
        settings = self._config.distillation
        if inputs.teacher_gap is None or self._config.adv_estimator == "opd":
            return result
        told = gap_advantage(
            inputs.teacher_gap, inputs.loss_mask, coef=settings.coef, clip=settings.clip
        )
        return dataclasses.replace(result, advantages=result.advantages + told)

    def _kl_in_reward(
        self, batch: Batch, old: Tensor, ref: Tensor, metrics: dict[str, float]
    ) -> Tensor:
        coef = self._kl.coef
        kl = kl_reward(old, ref, batch.loss_mask, coef=coef, kind=self._config.kl_penalty)
        self._kl.update(kl.mean_kl, len(set(batch.trajectory_id.tolist())))
        metrics |= {"actor/reward_kl_penalty": kl.mean_kl, "actor/reward_kl_penalty_coeff": coef}
        return kl.token_reward

    def _correct(
        self, batch: Batch, recomputed: Tensor | None, metrics: dict[str, float]
    ) -> tuple[Batch, Tensor | None]:
        """The batch that is trained on, and weights ``[B, T]`` for its tokens, if any."""
        correction = self._config.rollout_correction
        if not self._corrected or recomputed is None:
            return batch, None
        differing = (recomputed, batch.behavior_logprobs, batch.loss_mask)
        bounds: dict[str, Any] = {
            "level": correction.rollout_is,
            "upper": correction.rollout_is_threshold,
            "lower": correction.rollout_is_threshold_lower,
            "trajectory_id": batch.trajectory_id,
        }
        if correction.mode == "drop":
            kept = trusted_mask(*differing, **bounds)
            share = masked_mean(kept.to(batch.reward.dtype), batch.loss_mask)
            metrics["training/rollout_is_dropped"] = 1.0 - float(share)
            return dataclasses.replace(batch, loss_mask=kept), None
        weights = importance_weights(*differing, mode=correction.mode, **bounds)
        metrics["training/rollout_is_mean"] = float(masked_mean(weights, batch.loss_mask))
        return batch, weights


_CUT_SHORT = ("turn_limit", "length", "context", "timeout")


def _outcome_metric(trajectory: Trajectory, metric: str) -> float:
    """The metric before shaping: length penalties make every group look alive."""
    assert trajectory.reward is not None
    parts = trajectory.reward.parts
    if metric == "reward":
        return trajectory.reward.value - parts.get("overlong", 0.0)
    return parts.get(metric, 0.0)


def _gap(
    teacher: Tensor | None, student: Tensor | None, mask: Tensor, metrics: dict[str, float]
) -> Tensor | None:
    """[B, T] what the teacher gives a sampled token above the student; logs the reverse KL."""
    if teacher is None or student is None:
        return None
    gap = zero_outside(teacher.to(student.device) - student, mask.to(student.device))
    metrics["distillation/reverse_kl"] = -float(masked_mean(gap, mask.to(student.device)))
    return gap


def _last_segment(batch: Batch, final: Tensor) -> Tensor:
    """[B] V after each trajectory's last token, repeated on all of its rows."""
    owner = batch.trajectory_id.tolist()
    last: dict[int, int] = {}
    for row in torch.argsort(batch.segment, stable=True).tolist():
        last[owner[row]] = row
    return final[torch.tensor([last[trajectory] for trajectory in owner])]


def _greedy(owners: Sequence[Trajectory], rewards: Mapping[str, float] | None) -> Tensor | None:
    if rewards is None:
        return None
    return torch.tensor([rewards[t.group_id] for t in owners], dtype=torch.float32)


def _state_ids(owners: Sequence[Trajectory]) -> Tensor:
    """[B, K] number of the state each turn was taken in (GiGPO's anchor states).

    Siblings are in the same state when the environment last showed them the same text.
    """
    width = max(len(t.turns) for t in owners)
    numbers: dict[tuple[str, str], int] = {}
    ids = torch.full((len(owners), width), -1, dtype=torch.int64)
    for row, trajectory in enumerate(owners):
        seen = ["", *(turn.observation_text for turn in trajectory.turns)]
        for k in range(len(trajectory.turns)):
            ids[row, k] = numbers.setdefault((trajectory.group_id, seen[k]), len(numbers))
    return ids


def _summary(
    batch: Batch, advantages: Tensor, returns: Tensor | None, values: Values | None
) -> dict[str, float]:
    """The field's names for advantages, returns and values over action tokens."""
    mask = batch.loss_mask
    metrics: dict[str, float] = {}
    if not bool(mask.any()):
        return metrics
    named = {"advantages": advantages, "returns": returns}
    if values is not None:
        named["values"] = values.tokens
    for name, tensor in named.items():
        if tensor is not None:
            chosen = tensor[mask].double()
            metrics |= {
                f"critic/{name}/mean": float(chosen.mean()),
                f"critic/{name}/max": float(chosen.max()),
                f"critic/{name}/min": float(chosen.min()),
            }
    if values is not None and returns is not None:
        metrics["critic/vf_explained_var"] = explained_variance(values.tokens, returns, mask)
    return metrics
