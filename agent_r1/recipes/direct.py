"""What a policy answers when it cannot call a tool.

The quick start's claim is that its problems cannot be solved without the tool. So the
model is made to begin its answer right after the question, and has to write down a number.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from agent_r1.config.schema import Config
from agent_r1.models.load import load_model, load_tokenizer
from agent_r1.recipes.arithmetic import ANSWER_PREFIX
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.tool.base import BaseToolEnv, StepResult
from agent_r1.trainer.build import build_engine, pick_device
from agent_r1.types import Reward, Task, Trajectory

_TOKENS = 16
_NUMBER = re.compile(r"\s*(-?[0-9]{1,18})\s*")


class NoToolEnv(BaseToolEnv):
    """One turn, and nothing to call."""

    def step(self, raw_response: str) -> StepResult:
        return "", [], False


def direct_success(config: Config, policy: Path, tasks: Sequence[Task]) -> float:
    """Share of ``tasks`` that the model in the folder ``policy`` answers without a tool.

    By the embedded engine, whatever engine the run has: a server would have to be started.
    """
    roles = config.actor_rollout_ref
    rollout = roles.rollout.model_copy(update={"name": "embedded"})
    roles = roles.model_copy(update={"rollout": rollout})
    config = config.model_copy(update={"actor_rollout_ref": roles})
    codec = Codec(load_tokenizer(policy))
    model = load_model(policy, device=pick_device(config.trainer.device))
    engine = build_engine(config, model, codec.tokenizer)
    sampling = Sampling(seed=config.trainer.seed)
    return asyncio.run(answer_directly(engine, codec, tasks, sampling))


async def answer_directly(
    engine: Engine, codec: Codec, tasks: Sequence[Task], sampling: Sampling
) -> float:
    """Share of ``tasks`` answered right. Closes the engine."""
    limits = LoopLimits(max_turns=1, max_response_length=_TOKENS)
    runner = GroupRunner(AgentLoop(engine, codec, NoToolEnv(), limits), engine, _score)
    groups = [Group(_begun(task, codec), f"direct.{i}") for i, task in enumerate(tasks)]
    try:
        answered = await runner.run(groups, sampling)
    finally:
        await engine.close()
    return fmean(t.reward.value if t.reward else 0.0 for t in answered)


def _begun(task: Task, codec: Codec) -> Task:
    """The task as plain text that ends where the number has to come."""
    return replace(task, prompt=codec.decode(codec.render(task)) + ANSWER_PREFIX)


async def _score(trajectory: Trajectory) -> Trajectory:
    stated = _NUMBER.fullmatch(trajectory.final_text)
    correct = stated is not None and int(stated[1]) == trajectory.task.answer
    return replace(trajectory, reward=Reward(float(correct)))
