"""Reward functions that processes of the tests import by path."""

import os
import sys
import time

from agent_r1.reward import register_reward
from agent_r1.types import Reward


def length(trajectory, *, scale=1.0):
    return scale * len(trajectory.model_text)


def nan(trajectory):
    return float("nan")


def nothing(trajectory):
    return None


def raises(trajectory):
    return {}["missing"]


def hangs(trajectory):
    while True:
        time.sleep(0.01)


def hangs_in_c(trajectory):
    return float(len(str(9 ** (9**9))))


def swallows_exceptions(trajectory):
    while True:
        try:
            time.sleep(10)
        except Exception:
            continue


def dies(trajectory):
    os._exit(7)


def prints(trajectory):
    sys.stdout.write("this must not reach the answers\n")
    os.write(1, b"nor this\n")
    return 1.0


def hangs_on_request(trajectory):
    if trajectory.model_text == "hang":
        time.sleep(3600)
    return os.getpid()


def hangs_hard_on_request(trajectory):
    if trajectory.model_text == "hang":
        return hangs_in_c(trajectory)
    return len(trajectory.model_text)


@register_reward("test-partly-hangs", on_timeout=lambda *, wrong=0.0: Reward(wrong, {"late": 1.0}))
def hangs_with_a_verdict(trajectory, *, wrong=0.0):
    return hangs_in_c(trajectory)


def sees(trajectory):
    return Reward(
        1.0,
        {
            "prompt_ids": sum(len(turn.prompt_ids) for turn in trajectory.turns),
            "tokens": trajectory.response_length,
            "calls": len(trajectory.tool_calls),
        },
    )


async def waits(trajectory):
    import asyncio

    await asyncio.sleep(0 if trajectory.model_text else 3600)
    return 0.5


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {
        "score": float(solution_str.endswith(ground_truth)),
        "acc": True,
        "source": data_source,
        "extra": len(extra_info),
    }
