"""The reward that an agent which owns its loop gave itself (``tool.env=agent``)."""

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
