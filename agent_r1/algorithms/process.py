"""Rewards on tokens: the outcome on the last action, process rewards on their turn's last.

Process rewards come in units of their own (a tool call that ran: 0.1; a test that passed:
1). Two ways bring them next to the outcome reward. Estimators that standardise by group
standardise both in the same way. The others scale process rewards, without shifting them,
so that their spread over the batch equals the outcome's (``norm="outcome"``), or take
them as they are (``norm="none"``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from agent_r1.algorithms.baselines import group_stats
from agent_r1.algorithms.episodes import AdvantageInputs, Episodes
from agent_r1.errors import ConfigError, RecordError

MIN_SPREAD = 1e-6
"""Below this standard deviation, rewards count as equal and are not scaled by it."""


def action_rewards(
    inputs: AdvantageInputs, episodes: Episodes, coef: float = 1.0, norm: str = "outcome"
) -> Tensor:
    """[E, K] what each action token earned: outcome, process and token rewards."""
    outcome = episodes.of_rows(inputs.reward)[:, None]
    earned = torch.where(episodes.is_last, outcome, torch.zeros_like(outcome))
    if inputs.token_reward is not None:
        earned = earned + episodes.gather(inputs.token_reward)
    if inputs.turn_reward is not None and coef != 0.0:
        per_turn = coef * scaled_turn_rewards(inputs, episodes, norm)
        spread = episodes.spread(per_turn.nan_to_num(0.0)).to(earned.dtype)
        earned = earned + torch.where(episodes.is_turn_end, spread, torch.zeros_like(spread))
    return earned


def process_advantage(
    inputs: AdvantageInputs,
    episodes: Episodes,
    *,
    coef: float = 1.0,
    norm: str = "outcome",
    standardise: bool = False,
    epsilon: float = 1e-6,
) -> Tensor:
    """[E, K] float64 group-relative credit of process rewards (DeepSeekMath, section 4.1.3).

    ``z = p - mean of the group's turns`` (divided by their ``std + epsilon`` if
    ``standardise``), and a token is credited with the sum of z from its own turn onwards.
    Because z is centred, making more turns of average worth earns nothing.
    """
    width = torch.zeros_like(episodes.position, dtype=torch.float64)
    if inputs.turn_reward is None or coef == 0.0:
        return width
    per_turn = scaled_turn_rewards(inputs, episodes, norm)
    group = episodes.of_rows(inputs.group_id)[:, None].expand_as(per_turn)
    exists = ~per_turn.isnan() & episodes.counted[:, None]
    stats = group_stats(per_turn.flatten(), group.flatten(), exists.flatten())
    centred = per_turn - stats.mean.view_as(per_turn)
    if standardise:
        centred = centred / (stats.std.view_as(per_turn) + epsilon)
    alone = stats.size.view_as(per_turn) < 2
    centred = torch.where(alone, torch.zeros_like(centred), centred.nan_to_num(0.0))
    onwards = centred.flip(1).cumsum(1).flip(1)
    return coef * torch.where(episodes.present, episodes.spread(onwards), width)


def scaled_turn_rewards(inputs: AdvantageInputs, episodes: Episodes, norm: str) -> Tensor:
    """[E, S] float64 process reward of each slot, NaN where a turn has none."""
    if norm not in ("outcome", "none"):
        raise ConfigError(f"process_reward_norm is 'outcome' or 'none', not {norm!r}")
    raw = turn_rewards(inputs, episodes)
    return raw * _outcome_scale(inputs, episodes, raw) if norm == "outcome" else raw


def turn_rewards(inputs: AdvantageInputs, episodes: Episodes) -> Tensor:
    """[E, S] float64 process rewards by slot, NaN where a turn has none."""
    assert inputs.turn_reward is not None
    given = episodes.of_rows(inputs.turn_reward).to(torch.float64)
    last = int(episodes.turn.max()) if episodes.turn.numel() else -1
    if last >= given.shape[1]:
        raise RecordError(f"turn {last} was taken but turn_reward has {given.shape[1]} columns")
    taken = given.gather(1, episodes.turn.clamp(min=0)) if last >= 0 else given[:, :0]
    return torch.where(episodes.turn_present, taken, torch.full_like(taken, torch.nan))


def _outcome_scale(inputs: AdvantageInputs, episodes: Episodes, raw: Tensor) -> float:
    """Spread of the outcome over spread of the process rewards; 1 if either has none."""
    outcome = episodes.of_rows(inputs.reward)[episodes.counted].to(torch.float64)
    process = raw[~raw.isnan() & episodes.counted[:, None]]
    if len(outcome) < 2 or len(process) < 2:
        return 1.0
    above, below = float(outcome.std()), float(process.std())
    return above / below if min(above, below) > MIN_SPREAD else 1.0
