"""Advantage estimators of the outcome reward.

Every estimator is ``f(inputs: AdvantageInputs, *, options) -> AdvantageResult``. The
outcome reward sits on the trajectory's last action token; process rewards, where there
are any, on the last action token of their turn (see ``turns``). Baselines count each
trajectory once, however many segments it has. In every formula i runs over the
trajectories of a group of n and k over the action tokens of one trajectory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent_r1.algorithms.baselines import GroupStats, group_stats
from agent_r1.algorithms.episodes import AdvantageInputs, AdvantageResult, Episodes, unroll
from agent_r1.algorithms.masked import masked_whiten
from agent_r1.algorithms.process import action_rewards, process_advantage
from agent_r1.errors import ConfigError


def gae(
    inputs: AdvantageInputs,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Generalised advantage estimation over action tokens (Schulman et al. 2015, eq. 16).

    ``delta_k = r_k + gamma V_(k+1) - V_k`` and ``A_k = delta_k + gamma lam A_(k+1)``, where
    k + 1 is the next *action* token, beyond any tool output and in the next segment if
    need be. V after the last action is ``bootstrap_value`` on truncated rows, else 0.
    ``returns = A + V`` before whitening. The critic is trained on action tokens only.
    """
    episodes = unroll(inputs)
    rewards = action_rewards(inputs, episodes, process_reward_coef, process_reward_norm)
    values = episodes.gather(needed(inputs.values, "values", "gae"))
    advantages = discounted_deltas(
        rewards, values, episodes.present, final_values(inputs, episodes), gamma, lam
    )
    return AdvantageResult(
        _whitened(episodes.scatter(advantages), inputs.loss_mask, whiten),
        episodes.scatter(advantages + values),
    )


def grpo(
    inputs: AdvantageInputs,
    *,
    norm_adv_by_std_in_grpo: bool = True,
    epsilon: float = 1e-6,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Group-relative advantage (DeepSeekMath 2024, section 4.1.2).

    ``A_i = (r_i - mean) / (std + epsilon)`` on every action token, std with ddof = 1. A
    group of one has no baseline and advantage 0. Process rewards are standardised in the
    same way and summed from the turn onwards (section 4.1.3).
    """
    episodes = unroll(inputs)
    score = episode_score(inputs, episodes)
    stats = _group_of(episodes, inputs, score)
    centred = _centred(score, stats)
    if norm_adv_by_std_in_grpo:
        centred = centred / (stats.std + epsilon)
    process = process_advantage(
        inputs,
        episodes,
        coef=process_reward_coef,
        norm=process_reward_norm,
        standardise=norm_adv_by_std_in_grpo,
        epsilon=epsilon,
    )
    return _constant_plus(centred, process, episodes, inputs)


def dr_grpo(
    inputs: AdvantageInputs,
    *,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """GRPO without the division (Liu et al. 2025, "Dr. GRPO"): ``A_i = r_i - mean``.

    Dividing by the spread favours questions that are nearly solved or nearly hopeless. The
    other half of Dr. GRPO, the constant divisor, is an aggregation mode.
    """
    return grpo(
        inputs,
        norm_adv_by_std_in_grpo=False,
        process_reward_coef=process_reward_coef,
        process_reward_norm=process_reward_norm,
    )


def rloo(
    inputs: AdvantageInputs,
    *,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Leave-one-out baseline (Ahmadian et al. 2024).

    ``A_i = r_i - mean of the others = (r_i - mean) n / (n - 1)``; 0 for a group of one.
    """
    episodes = unroll(inputs)
    score = episode_score(inputs, episodes)
    stats = _group_of(episodes, inputs, score)
    left_out = _centred(score, stats) * stats.size / (stats.size - 1).clamp(min=1)
    process = process_advantage(
        inputs, episodes, coef=process_reward_coef, norm=process_reward_norm
    )
    return _constant_plus(left_out, process, episodes, inputs)


def reinforce_plus_plus(
    inputs: AdvantageInputs,
    *,
    gamma: float = 1.0,
    whiten: bool = True,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Whitened return-to-go (Hu 2025, REINFORCE++).

    ``G_k = r_k + gamma G_(k+1)`` over action tokens, never reset at a tool span; advantages
    are G whitened over the batch's action tokens.
    """
    episodes = unroll(inputs)
    rewards = action_rewards(inputs, episodes, process_reward_coef, process_reward_norm)
    returns = episodes.scatter(returns_to_go(rewards, gamma))
    return AdvantageResult(_whitened(returns, inputs.loss_mask, whiten), returns)


def reinforce_plus_plus_baseline(
    inputs: AdvantageInputs,
    *,
    whiten: bool = True,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Group mean as the baseline, batch spread as the scale (Hu 2025, REINFORCE++).

    ``r_i - mean`` on every action token, then whitened over the batch's action tokens.
    """
    centred = dr_grpo(
        inputs, process_reward_coef=process_reward_coef, process_reward_norm=process_reward_norm
    )
    return AdvantageResult(_whitened(centred.advantages, inputs.loss_mask, whiten))


def remax(
    inputs: AdvantageInputs,
    *,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Greedy rollout as the baseline (Li et al. 2023): ``A_k = G_k - r_greedy``.

    G is the undiscounted return-to-go, which is the outcome reward on every action token
    unless single tokens carry rewards.
    """
    episodes = unroll(inputs)
    greedy = episodes.of_rows(needed(inputs.greedy_reward, "greedy_reward", "remax"))
    returns = returns_to_go(action_rewards(inputs, episodes, 0.0, "none"), 1.0)
    process = process_advantage(
        inputs, episodes, coef=process_reward_coef, norm=process_reward_norm
    )
    return AdvantageResult(
        episodes.scatter(returns - greedy[:, None] + process.to(returns.dtype)),
        episodes.scatter(returns),
    )


def returns_to_go(rewards: Tensor, gamma: float) -> Tensor:
    """``G_k = r_k + gamma G_(k+1)`` along the last axis of [E, K]; absent entries are 0."""
    total = torch.zeros_like(rewards)
    running = rewards.new_zeros(rewards.shape[0])
    for k in reversed(range(rewards.shape[1])):
        running = rewards[:, k] + gamma * running
        total[:, k] = running
    return total


def discounted_deltas(
    rewards: Tensor, values: Tensor, present: Tensor, final: Tensor, gamma: float, lam: float
) -> Tensor:
    """The GAE recursion on right-padded [E, K]; ``final[E]`` is V after the last entry."""
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(final)
    following = final
    for k in reversed(range(rewards.shape[1])):
        delta = rewards[:, k] + gamma * following - values[:, k]
        here = present[:, k]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, k], following)
        advantages[:, k] = torch.where(here, running, torch.zeros_like(running))
    return advantages


def final_values(inputs: AdvantageInputs, episodes: Episodes) -> Tensor:
    """[E] V after the last action: bootstrapped where the episode was cut, else 0."""
    if inputs.bootstrap_value is None or inputs.truncated is None:
        return torch.zeros_like(episodes.of_rows(inputs.reward))
    value = episodes.of_rows(inputs.bootstrap_value)
    return torch.where(episodes.of_rows(inputs.truncated), value, torch.zeros_like(value))


def episode_score(inputs: AdvantageInputs, episodes: Episodes) -> Tensor:
    """[E] outcome reward plus whatever single tokens carry (the KL penalty)."""
    score = episodes.of_rows(inputs.reward)
    if inputs.token_reward is None:
        return score
    return score + episodes.gather(inputs.token_reward).sum(1)


def needed(value: Tensor | None, name: str, estimator: str) -> Tensor:
    """The optional input that this estimator cannot do without."""
    if value is None:
        raise ConfigError(f"{estimator} needs AdvantageInputs.{name}; the batch has none")
    return value


def _group_of(episodes: Episodes, inputs: AdvantageInputs, score: Tensor) -> GroupStats:
    return group_stats(score, episodes.of_rows(inputs.group_id), episodes.counted)


def _centred(score: Tensor, stats: GroupStats) -> Tensor:
    """Score minus the group's mean; 0 where there are no siblings to compare with."""
    return torch.where(stats.size > 1, score - stats.mean, torch.zeros_like(stats.mean))


def _constant_plus(
    per_episode: Tensor, process: Tensor, episodes: Episodes, inputs: AdvantageInputs
) -> AdvantageResult:
    total = (per_episode[:, None] + process).to(inputs.reward.dtype)
    return AdvantageResult(episodes.scatter(total))


def _whitened(values: Tensor, mask: Tensor, whiten: bool) -> Tensor:
    return masked_whiten(values, mask) if whiten else values
