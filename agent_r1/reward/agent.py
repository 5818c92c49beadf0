"""Rewards that are not computed here: an environment's own, and those of an agent which owns its
loop (``tool.env=agent``).
"""

from __future__ import annotations

from agent_r1.errors import RewardError
from agent_r1.reward.base import register_reward
from agent_r1.types import Reward, Trajectory


@register_reward("agent", inline=True)
def agent(trajectory: Trajectory) -> Reward:
    """The ``reward`` that the agent returned, with the other numbers that it returned as parts."""
    value = trajectory.task.extra.get("agent_reward")
    if value is None:
        raise RewardError(
            "the agent gave no reward; let it return a number or {'reward': ...}, or score its "
            "trajectories with another reward.name"
        )
    parts = trajectory.task.extra.get("agent_parts") or {}
    return Reward(float(value), {str(name): float(part) for name, part in parts.items()})


@register_reward("environment", inline=True)
def environment(
    trajectory: Trajectory, *, per_turn: bool = False, missing: str = "error"
) -> Reward:
    """The sum of what the environment gave for the turns (:class:`agent_r1.tool.Step`).

    With ``per_turn`` each turn's share is given as a process reward too, which estimators that
    know turns place there. A turn without a reward counts 0. A trajectory without any is an
    error, unless ``missing`` is ``"zero"``: environments that reward nothing but success.
    """
    found = [turn.reward for turn in trajectory.turns]
    if missing == "error" and found and all(reward is None for reward in found):
        raise RewardError(
            "the environment gave no reward; give one in its Step, take reward.kwargs.missing=zero "
            "if none means 0, or score its trajectories with another reward.name"
        )
    turns = tuple(0.0 if reward is None else reward for reward in found)
    return Reward(sum(turns), {}, turns if per_turn else None)
