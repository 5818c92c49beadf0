"""Scores of trajectories, from the model's own text and outside of the sandbox."""

from agent_r1.reward.base import (
    RewardFn,
    from_compute_score,
    make_reward,
    normalise_reward,
    register_reward,
)
from agent_r1.reward.grader import Grader, score

__all__ = [
    "Grader",
    "RewardFn",
    "from_compute_score",
    "make_reward",
    "normalise_reward",
    "register_reward",
    "score",
]
