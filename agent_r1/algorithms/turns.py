"""Credit per turn: the turn, not the token, is the action of the decision process."""

from __future__ import annotations

import torch
from torch import Tensor

from agent_r1.algorithms.advantages import (
    discounted_deltas,
    final_values,
    grpo,
    needed,
    returns_to_go,
)
from agent_r1.algorithms.baselines import group_stats
from agent_r1.algorithms.episodes import AdvantageInputs, AdvantageResult, Episodes, unroll
from agent_r1.algorithms.masked import masked_whiten
from agent_r1.algorithms.process import action_rewards
from agent_r1.errors import RecordError


def turn_gae(
    inputs: AdvantageInputs,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    whiten: bool = True,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """GAE in which one step is one turn.

    With V_j the value at the first token of turn j and r_j all that its tokens earned,
    ``delta_j = r_j + gamma V_(j+1) - V_j`` and ``A_j = delta_j + gamma lam A_(j+1)``. Every
    token of turn j has advantage A_j and return ``A_j + V_j``. gamma and lam discount per
    turn, so that a long thought is not worth less than a short one.
    """
    episodes = unroll(inputs)
    rewards = action_rewards(inputs, episodes, process_reward_coef, process_reward_norm)
    values = episodes.gather(needed(inputs.values, "values", "turn_gae"))
    at_start = torch.where(episodes.is_turn_start, values, torch.zeros_like(values))
    turn_values = episodes.turn_sum(at_start)
    advantages = discounted_deltas(
        episodes.turn_sum(rewards),
        turn_values,
        episodes.turn_present,
        final_values(inputs, episodes),
        gamma,
        lam,
    )
    spread = episodes.scatter(episodes.spread(advantages))
    return AdvantageResult(
        masked_whiten(spread, inputs.loss_mask) if whiten else spread,
        episodes.scatter(episodes.spread(advantages + turn_values)),
    )


def gigpo(
    inputs: AdvantageInputs,
    *,
    gamma: float = 1.0,
    step_advantage_w: float = 1.0,
    norm_adv_by_std_in_grpo: bool = True,
    epsilon: float = 1e-6,
    process_reward_coef: float = 1.0,
    process_reward_norm: str = "outcome",
) -> AdvantageResult:
    """Group-in-group advantage (Feng et al. 2025, GiGPO).

    ``A = A_episode + step_advantage_w * A_step``. A_episode is GRPO on the outcome. A_step
    compares turns that the siblings took in the same state (``state_id``): the return
    ``R_j = sum over l >= j of gamma^(l - j) r_l`` of the turn, standardised among them.
    Without ``state_id`` the turns of equal number are compared; a state visited once
    has A_step 0.
    """
    episodes = unroll(inputs)
    episode_level = grpo(
        inputs,
        norm_adv_by_std_in_grpo=norm_adv_by_std_in_grpo,
        epsilon=epsilon,
        process_reward_coef=0.0,
    )
    rewards = action_rewards(inputs, episodes, process_reward_coef, process_reward_norm)
    returns = returns_to_go(episodes.turn_sum(rewards), gamma)
    exists = episodes.turn_present & episodes.counted[:, None]
    state = _state_of_turn(inputs, episodes)
    stats = group_stats(returns.flatten(), state.flatten(), exists.flatten())
    step = returns - stats.mean.view_as(returns)
    if norm_adv_by_std_in_grpo:
        step = step / (stats.std.view_as(returns) + epsilon)
    step = torch.where(stats.size.view_as(returns) > 1, step, torch.zeros_like(step))
    spread = episodes.scatter(episodes.spread(step.to(returns.dtype)))
    return AdvantageResult(episode_level.advantages + step_advantage_w * spread)


def _state_of_turn(inputs: AdvantageInputs, episodes: Episodes) -> Tensor:
    """[E, S] one number per (group, state), -1 where there is no turn."""
    if inputs.state_id is None:
        state = episodes.turn
    else:
        given = episodes.of_rows(inputs.state_id)
        if episodes.turn.numel() and int(episodes.turn.max()) >= given.shape[1]:
            raise RecordError(f"a turn beyond the {given.shape[1]} columns of state_id was taken")
        state = given.gather(1, episodes.turn.clamp(min=0))
    group = episodes.of_rows(inputs.group_id)[:, None].expand_as(state)
    pairs = torch.stack([group.flatten(), state.flatten()], 1)
    _, number = torch.unique(pairs, dim=0, return_inverse=True)
    number = number.view_as(state)
    return torch.where(episodes.turn_present, number, torch.full_like(number, -1))
