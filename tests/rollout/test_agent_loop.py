"""One trajectory: what ends it, what is kept, whose fault it was."""

import asyncio
import time
from dataclasses import replace

import pytest

from agent_r1.errors import EngineError, RolloutFailed, SandboxUnavailable
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.group import Group, GroupRunner, require_usable
from agent_r1.rollout.limits import LoopLimits, Sampling, derive_seed
from agent_r1.testing import HANG, Reply, ScriptedEngine, byte_tokenizer
from agent_r1.tool.base import BaseToolEnv, call_context
from agent_r1.types import Finish, Outcome, Reward, Task

CODE = "think <code>\nprint(1)\n</code>"
ANSWER = "the answer is 1"
TASK = Task("t", "question", answer="1")


class EchoEnv(BaseToolEnv):
    """Answers code with ``[n]``; counts its steps."""

    stop_strings = ("</code>",)

    def __init__(self, observation="\n[1]\n", behaviour=None):
        self.observation = observation
        self.behaviour = behaviour
        self.seen = []
        self.contexts = []

    def step(self, raw_response):
        self.seen.append(raw_response)
        self.contexts.append(call_context.get())
        if self.behaviour is not None:
            return self.behaviour(raw_response)
        if "</code>" not in raw_response:
            return "", [], False
        return self.observation, [True], True


@pytest.fixture(scope="module")
def codec():
    return Codec(byte_tokenizer(extra_tokens=["</code>"]))


def play(codec, script, env=None, limits=None, sampling=None, **engine):
    env = env or EchoEnv()
    model = ScriptedEngine(codec.tokenizer, script, **engine)
    limits = limits or LoopLimits(max_turns=4, max_response_length=1000)
    loop = AgentLoop(model, codec, env, limits)
    sampling = sampling or Sampling(stop=env.stop_strings)
    return asyncio.run(loop.run(TASK, "g", 0, sampling)), env, model


def test_think_execute_think(codec):
    trajectory, env, _model = play(codec, [CODE + " ignored", ANSWER])
    assert trajectory.outcome is Outcome.FINISHED
    assert env.seen == [CODE, ANSWER]
    assert trajectory.transcript == CODE + "\n[1]\n" + ANSWER
    assert trajectory.model_text == CODE + ANSWER
    first, second = trajectory.turns
    assert first.completion.finish is Finish.STOP
    assert second.prompt_ids == first.next_prompt_ids
    assert [call.success for call in trajectory.tool_calls] == [True]
    (sample,) = trajectory.samples()
    trained = [i for i, m in zip(sample.token_ids, sample.loss_mask, strict=True) if m]
    assert codec.decode(trained) == CODE + ANSWER + "<|im_end|>"


def test_sampled_ids_are_never_tokenised_again(codec):
    unusual = tuple(codec.tokenizer.encode("<code>x</", add_special_tokens=False)) + tuple(
        codec.tokenizer.convert_tokens_to_ids(list("code>"))
    )
    trajectory, _, model = play(codec, [Reply("", token_ids=unusual), ANSWER])
    assert model.calls[1].prompt_ids[: len(trajectory.turns[0].prompt_ids) + len(unusual)] == (
        trajectory.turns[0].prompt_ids + unusual
    )


def test_no_observation_follows_the_last_turn_that_is_allowed(codec):
    limits = LoopLimits(max_turns=2, max_response_length=1000)
    trajectory, env, _model = play(codec, [CODE, CODE], limits=limits)
    assert trajectory.outcome is Outcome.TURN_LIMIT
    assert len(env.seen) == 2
    assert len(trajectory.tool_calls) == 2
    assert trajectory.turns[-1].observation_ids == ()
    assert trajectory.samples()[0].loss_mask[-1] == 1


def test_the_response_budget_counts_model_and_tool_tokens(codec):
    room = len(CODE) - len("</code>") + 1 + len("\n[1]\n")  # "</code>" is one token
    limits = LoopLimits(max_turns=4, max_response_length=room + 3)
    trajectory, _, model = play(codec, [CODE, ANSWER], limits=limits)
    assert model.calls[1].params.max_new_tokens == 3
    assert trajectory.outcome is Outcome.LENGTH
    assert trajectory.final_text == "the"


def test_a_budget_used_up_by_the_tool_ends_as_length(codec):
    limits = LoopLimits(max_turns=4, max_response_length=60)
    trajectory, _, _ = play(codec, [CODE, ANSWER], EchoEnv("x" * 100), limits)
    assert trajectory.outcome is Outcome.LENGTH
    assert len(trajectory.turns) == 1


def test_context_overflow_is_truncation_and_not_an_error(codec):
    trajectory, _, _ = play(codec, [CODE, ANSWER], EchoEnv("x" * 500), max_model_len=100)
    assert trajectory.outcome is Outcome.CONTEXT
    short, _, _ = play(codec, [CODE], max_model_len=12)
    assert short.outcome is Outcome.CONTEXT
    none, _, _ = play(codec, [CODE], max_model_len=3)
    assert none.outcome is Outcome.CONTEXT
    assert none.turns == ()


def test_a_turn_cut_by_its_own_budget_is_not_stepped(codec):
    limits = LoopLimits(max_turns=4, max_response_length=1000, max_tokens_per_turn=5)
    trajectory, env, _ = play(codec, [CODE], limits=limits)
    assert trajectory.outcome is Outcome.LENGTH
    assert env.seen == []


def test_a_deadline_keeps_the_turns_before_it(codec):
    limits = LoopLimits(max_turns=4, max_response_length=1000, timeout_s=0.2)
    trajectory, _, _ = play(codec, [CODE, HANG], limits=limits)
    assert trajectory.outcome is Outcome.TIMEOUT
    assert len(trajectory.turns) == 1


def test_a_tool_that_hangs_fails_its_trajectory_with_the_remedy(codec):
    env = EchoEnv(behaviour=lambda raw: time.sleep(30))
    limits = LoopLimits(max_turns=4, max_response_length=1000, tool_timeout_s=0.2)
    trajectory, _, _ = play(codec, [CODE], env, limits)
    assert trajectory.outcome is Outcome.TOOL_ERROR
    assert "tool.timeout_s" in trajectory.error
    assert trajectory.turns[0].text == CODE


def raising(error):
    def behaviour(raw):
        raise error

    return behaviour


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (raising(SandboxUnavailable("no sandbox")), "no sandbox"),
        (raising(ValueError("bug in the tool")), "bug in the tool"),
        (raising(TimeoutError("inner")), "inner"),
        (lambda raw: "only text", "must return"),
        (lambda raw: ("text", True, True), "must return"),
    ],
)
def test_a_broken_environment_is_recorded_and_not_raised(codec, behaviour, words):
    trajectory, _, _ = play(codec, [CODE], EchoEnv(behaviour=behaviour))
    assert trajectory.outcome is Outcome.TOOL_ERROR
    assert words in trajectory.error
    assert trajectory.reward is None


def test_an_engine_failure_is_recorded(codec):
    trajectory, _, _ = play(codec, [CODE, EngineError("out of memory")])
    assert trajectory.outcome is Outcome.ENGINE_ERROR
    assert "out of memory" in trajectory.error
    assert len(trajectory.turns) == 1


def test_tools_are_told_on_whose_behalf_they_are_called(codec):
    _, env, model = play(codec, [CODE, ANSWER], sampling=Sampling(stop=("</code>",), seed=7))
    assert [context.turn for context in env.contexts] == [0, 1]
    assert {context.trajectory_id for context in env.contexts} == {"g/0"}
    assert env.contexts[0].seed != env.contexts[1].seed
    _again, other, _ = play(codec, [CODE, ANSWER], sampling=Sampling(stop=("</code>",), seed=7))
    assert [c.seed for c in other.contexts] == [c.seed for c in env.contexts]
    assert model.calls[0].params.seed == derive_seed(7, "g/0", 0)


def test_a_trigger_on_ids_cuts_what_was_sampled(codec):
    class CutEnv(EchoEnv):
        def process_responses_ids(self, tokenizer, rows):
            return [row[:4] for row in rows]

    trajectory, env, _ = play(codec, [ANSWER], CutEnv(behaviour=lambda raw: ("", [], False)))
    assert env.seen == ["the "]
    assert trajectory.turns[0].completion.finish is Finish.STOP
    assert len(trajectory.turns[0].completion.logprobs) == 4


def run_groups(codec, script, groups, env=None, concurrency=None, scorer=None):
    env = env or EchoEnv()
    engine = ScriptedEngine(codec.tokenizer, script)
    loop = AgentLoop(engine, codec, env, LoopLimits(max_turns=4, max_response_length=1000))

    async def keep(trajectory):
        return trajectory

    runner = GroupRunner(loop, engine, scorer or keep, max_concurrency=concurrency)
    finished = []
    results = asyncio.run(
        runner.run(groups, Sampling(stop=env.stop_strings), on_finished=finished.append)
    )
    return results, finished, engine


@pytest.mark.parametrize("concurrency", [None, 1, 2])
def test_groups_come_back_in_order_and_release_everything(codec, concurrency):
    groups = [Group(replace(TASK, id=str(i)), f"g{i}", 3) for i in range(3)]
    results, finished, engine = run_groups(codec, [CODE, ANSWER], groups, concurrency=concurrency)
    assert [t.id for t in results] == [f"g{i}/{j}" for i in range(3) for j in range(3)]
    assert len(finished) == 9
    assert engine.open_ids == set()


def test_a_slow_member_holds_up_nobody(codec):
    """The other trajectories finish while one is still inside its tool."""
    order = []

    def behaviour(raw):
        slow = call_context.get().trajectory_id == "g0/0"
        if "</code>" not in raw:
            return "", [], False
        time.sleep(0.5 if slow else 0.0)
        return "\n[1]\n", [True], True

    async def scorer(trajectory):
        order.append(trajectory.id)
        return trajectory

    groups = [Group(TASK, "g0", 4)]
    run_groups(codec, [CODE, ANSWER], groups, EchoEnv(behaviour=behaviour), scorer=scorer)
    assert order[-1] == "g0/0"
    assert len(order) == 4


def test_failures_are_weather_until_there_are_too_many(codec):
    def script(call):
        return EngineError("gone") if call.request_id == "g0/0" else ANSWER

    async def scorer(trajectory):
        from agent_r1.types import Reward

        return replace(trajectory, reward=Reward(1.0))

    results, _, _ = run_groups(codec, script, [Group(TASK, "g0", 4)], scorer=scorer)
    good = require_usable(results, 0.25)
    assert [t.index for t in good] == [1, 2, 3]
    with pytest.raises(RolloutFailed, match="gone"):
        require_usable(results, 0.2)


def test_a_bug_of_ours_crashes_and_keeps_what_had_finished(codec):
    async def scorer(trajectory):
        if trajectory.index == 1:
            raise KeyError("a bug")
        return trajectory

    finished = []
    engine = ScriptedEngine(codec.tokenizer, [ANSWER])
    loop = AgentLoop(engine, codec, EchoEnv(), LoopLimits(max_turns=2, max_response_length=100))
    runner = GroupRunner(loop, engine, scorer, max_concurrency=1)
    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(runner.run([Group(TASK, "g", 3)], Sampling(), on_finished=finished.append))
    assert [t.index for t in finished][:1] == [0]
    assert engine.open_ids == set()


# --- rewards that compare siblings ------------------------------------------------------


async def compared(trajectory, siblings=()):
    """A reward that says how many it was scored with."""
    if trajectory.index == 3:
        return replace(trajectory, error="no reward for this one")
    return replace(trajectory, reward=Reward(float(len(siblings))))


def run_together(codec, script, n=4, enough=None, scorer=compared, during=None):
    env = EchoEnv()
    engine = ScriptedEngine(codec.tokenizer, script)
    loop = AgentLoop(engine, codec, env, LoopLimits(max_turns=4, max_response_length=1000))
    runner = GroupRunner(loop, engine, scorer, compares=True)
    told = []

    async def sample():
        async with runner.rollouts(
            Sampling(stop=env.stop_strings), told.append, enough=enough
        ) as r:
            r.submit([Group(TASK, "g0", n), Group(TASK, "g1", n)])
            if during is not None:
                await during(r)
                return [], r.running
            return [await r.next(), await r.next()], r.running

    finished, running = asyncio.run(sample())
    assert running == 0 and engine.open_ids == set()
    return {f.group.group_id: f.trajectories for f in finished}, told


def test_siblings_are_scored_together_without_those_that_failed(codec):
    def script(call):
        return EngineError("gone") if call.request_id == "g0/1" else ANSWER

    found, told = run_together(codec, script)
    first, second = found["g0"], found["g1"]
    assert [t.reward and t.reward.value for t in first] == [3.0, None, 3.0, None]
    assert [t.reward and t.reward.value for t in second] == [4.0, 4.0, 4.0, None]
    assert first[1].outcome.failed and second[3].error == "no reward for this one"
    assert len(told) == 8


def test_enough_siblings_are_scored_and_the_rest_is_cut(codec):
    def script(call):
        return EngineError("gone") if call.request_id == "g0/0" else ANSWER

    found, told = run_together(codec, script, n=5, enough=2)
    for members in found.values():
        good = [t for t in members if not t.outcome.failed]
        assert len(good) == 2 and all(t.reward.value == 2.0 for t in good if t.index != 3)
    assert len(told) == sum(len(members) for members in found.values())


def test_a_group_that_is_cut_while_it_is_compared_is_forgotten(codec):
    entered = asyncio.Event()

    async def slow(trajectory, siblings=()):
        entered.set()
        await asyncio.sleep(0.05)
        return await compared(trajectory, siblings)

    async def during(rollouts):
        await entered.wait()
        rollouts.cut(Group(TASK, "g0", 4))
        rollouts.cut(Group(TASK, "g1", 4))
        await asyncio.sleep(0.2)

    _, told = run_together(codec, [ANSWER], scorer=slow, during=during)
    assert told == []


def test_what_is_run_to_the_end_is_scored_alone(codec):
    engine = ScriptedEngine(codec.tokenizer, [ANSWER])
    loop = AgentLoop(engine, codec, EchoEnv(), LoopLimits(max_turns=2, max_response_length=100))
    runner = GroupRunner(loop, engine, compared, compares=True)
    results = asyncio.run(runner.run([Group(TASK, "g", 3)], Sampling()))
    assert [t.reward.value for t in results] == [0.0, 0.0, 0.0]
