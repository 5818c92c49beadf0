"""Agents that own their loop, against a scripted engine: every end an agent can come to."""

import asyncio
import sys
from pathlib import Path

import pytest

from agent_r1.errors import ConfigError, EngineError
from agent_r1.reward import score
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.rollout.own_loop import OwnLoop
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool import make_env
from agent_r1.tool.envs.agent import AgentEnv
from agent_r1.types import Outcome, Task

pytest.importorskip("openai")
AGENTS = Path(__file__).with_name("own_agents.py")
TOKENIZER = byte_tokenizer()
TASK = Task("t", ({"role": "user", "content": "What is 6 * 7?"},), answer="42")


def trajectory_of(reply="42", *, limits=None, **options):
    """One trajectory of an agent whose model always says the same."""
    run = options.pop("run", None)
    env = make_env("agent", [], run=f"{AGENTS}:{run}" if run else None, **options)
    replies = reply if callable(reply) else lambda call: reply
    engine = ScriptedEngine(TOKENIZER, replies)
    loop = OwnLoop(engine, Codec(TOKENIZER), env, limits or LoopLimits(9, 4000, timeout_s=60))

    async def main():
        engine.open(["g/0"])
        try:
            return await loop.run(TASK, "g", 0, Sampling())
        finally:
            await loop.close()

    found = asyncio.run(main())
    assert not engine.open_ids  # the engine waits for nobody
    return found


def test_what_an_agent_asks_becomes_a_trajectory_with_its_own_reward():
    trajectory = trajectory_of(run="polite")
    assert trajectory.outcome is Outcome.FINISHED and trajectory.error is None
    assert [turn.text for turn in trajectory.turns] == ["42", "42"]
    assert "Thanks. And now?" in trajectory.turns[0].observation_text
    (sample,) = trajectory.samples()
    assert sum(sample.loss_mask) == 2 * len("42") + 2
    reward = score(trajectory, "agent")
    assert (reward.value, reward.parts) == (0.5, {"turns": 2.0})
    assert trajectory.task.extra["agent_output"] == "42"


def test_a_function_without_asyncio_runs_in_a_thread():
    trajectory = trajectory_of(run="blocking")
    assert trajectory.outcome is Outcome.FINISHED
    assert trajectory.task.extra["agent_output"] == "42"


def test_options_reach_the_function():
    assert len(trajectory_of(run="polite", options={"questions": 4}).turns) == 4
    with pytest.raises(ConfigError, match="must take an AgentCall and the options"):
        trajectory_of(run="polite", options={"question": 4})


def test_a_command_finds_address_and_key_and_prints_its_reward():
    trajectory = trajectory_of(command=[sys.executable, str(AGENTS)])
    assert trajectory.outcome is Outcome.FINISHED, trajectory.error
    assert [turn.text for turn in trajectory.turns] == ["42"]
    assert score(trajectory, "agent").value == 0.25


def test_a_command_that_fails_says_why():
    trajectory = trajectory_of(command=[sys.executable, str(AGENTS), "--fail"])
    assert trajectory.outcome is Outcome.TOOL_ERROR
    assert "ended with status 1: the agent is tired" in trajectory.error
    missing = trajectory_of(command=["/no/such/agent"])
    assert missing.outcome is Outcome.TOOL_ERROR and "cannot be started" in missing.error


def test_a_command_ends_with_its_trajectory(tmp_path):
    limits = LoopLimits(9, 4000, timeout_s=3)
    marker = tmp_path / "alive"
    script = f"python={sys.executable}; $python {AGENTS} --sleep; touch {marker}"
    trajectory = trajectory_of(command=["sh", "-c", script], limits=limits)
    assert trajectory.outcome is Outcome.TIMEOUT
    assert trajectory.seconds < 30
    assert not marker.exists()


def test_a_deadline_keeps_what_was_done_before():
    trajectory = trajectory_of(run="endless", limits=LoopLimits(9, 4000, timeout_s=1.5))
    assert trajectory.outcome is Outcome.TIMEOUT
    assert [turn.text for turn in trajectory.turns] == ["42"]


def test_a_used_up_limit_is_the_outcome_whatever_the_agent_makes_of_it():
    trajectory = trajectory_of(run="greedy", limits=LoopLimits(3, 4000, timeout_s=60))
    assert trajectory.outcome is Outcome.TURN_LIMIT and len(trajectory.turns) == 3
    assert len(trajectory.samples()) == 3  # the same question three times: three segments
    refused = trajectory_of(run="polite", limits=LoopLimits(1, 4000, timeout_s=60))
    assert refused.outcome is Outcome.TURN_LIMIT and len(refused.turns) == 1


def test_an_agent_that_falls_over_is_excluded_or_scored_as_configured():
    excluded = trajectory_of(run="clumsy")
    assert excluded.outcome is Outcome.TOOL_ERROR
    assert "ValueError: no JSON in the answer" in excluded.error
    scored = trajectory_of(run="clumsy", on_error="score")
    assert scored.outcome is Outcome.FINISHED and len(scored.turns) == 1


@pytest.mark.parametrize(
    ("agent", "said"),
    [("lazy", "never asked the model"), ("strange", "returned object")],
)
def test_an_agent_that_is_wired_wrongly_is_told(agent, said):
    trajectory = trajectory_of(run=agent)
    assert trajectory.outcome is Outcome.TOOL_ERROR and said in trajectory.error


def test_a_failing_engine_is_not_the_agents_fault():
    def broken(call):
        return EngineError("out of memory")

    trajectory = trajectory_of(broken, run="blocking")
    assert trajectory.outcome is Outcome.ENGINE_ERROR and "out of memory" in trajectory.error


def test_a_reward_is_demanded_only_from_agents_that_score_themselves():
    from agent_r1.errors import RewardError

    trajectory = trajectory_of("so it is <answer>42</answer>", run="blocking")
    assert score(trajectory, "exact_match").value == 1.0
    with pytest.raises(RewardError, match="the agent gave no reward"):
        score(trajectory, "agent")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs tool.env_kwargs.run=file.py:function"),
        ({"run": "a.b:c", "command": "x"}, "needs tool.env_kwargs.run"),
        ({"command": "x", "on_error": "ignore"}, "'exclude' or 'score'"),
        ({"command": "x", "options": {"a": 1}}, "a command takes no options"),
    ],
)
def test_a_wrong_configuration_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        AgentEnv(**options)


def test_many_trajectories_share_one_endpoint_and_never_mix():
    """What each model was asked and what it said belong to the same task."""
    env = make_env("agent", [], run=f"{AGENTS}:polite")

    def echo(call):
        question = call.prompt_text.split("user\n")[1].split("<|im_end|>")[0]
        return f"you said {question}"

    engine = ScriptedEngine(TOKENIZER, echo)
    loop = OwnLoop(engine, Codec(TOKENIZER), env, LoopLimits(9, 4000, timeout_s=60))

    async def keep(trajectory):
        return trajectory

    runner = GroupRunner(loop, engine, keep, max_concurrency=7)
    tasks = [Task(f"t{i}", ({"role": "user", "content": f"word{i}"},)) for i in range(6)]
    groups = [Group(task, f"g{i}", n=3) for i, task in enumerate(tasks)]

    async def main():
        try:
            return await runner.run(groups, Sampling())
        finally:
            await runner.close()

    found = asyncio.run(main())
    assert len(found) == 18
    for i, trajectory in enumerate(found):
        assert trajectory.outcome is Outcome.FINISHED
        assert [turn.text for turn in trajectory.turns] == [f"you said word{i // 3}"] * 2
