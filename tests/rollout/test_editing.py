"""Policies for long episodes: what stays in the context, what is asked, what is trained."""

import asyncio

import pytest

from agent_r1.config.task import ContextConfig
from agent_r1.errors import ConfigError
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool import BaseToolEnv, Environment, Step
from agent_r1.tool.protocol import PerTrajectory
from agent_r1.types import Outcome, Task

TEXT = Task("t", "Task.")
CHAT = Task("t", ({"role": "user", "content": "Task."},))
EOS = "<|im_end|>"


class Talks(BaseToolEnv):
    """Answers every turn with its number and some padding; "done" ends it."""

    def step(self, raw_response):
        return f" [{raw_response}:{'x' * 20}] ", [True], raw_response != "done"


class Chats(Environment):
    def __init__(self):
        self.seen = []

    def step(self, action):
        self.seen.append(action)
        said = ({"role": "user", "content": f"heard {action} {'y' * 20}"},)
        return Step(said, terminated=action == "done")

    @property
    def state(self):
        return self.seen


@pytest.fixture(scope="module")
def codec():
    return Codec(byte_tokenizer())


def play(codec, script, env, window, task=TEXT, **context):
    engine = ScriptedEngine(codec.tokenizer, script, max_model_len=window)
    loop = AgentLoop(engine, codec, env, LoopLimits(20, 5000), ContextConfig(**context))
    return asyncio.run(loop.run(task, "g", 0, Sampling()))


def contexts(codec, trajectory):
    return [codec.decode(turn.prompt_ids) for turn in trajectory.turns]


def test_without_a_policy_the_window_ends_the_episode(codec):
    assert play(codec, ["a"] * 9, Talks(), 100).outcome is Outcome.CONTEXT


def test_the_last_turns_are_kept(codec):
    script = ["a", "b", "c", "d", "done"]
    found = play(codec, script, Talks(), 110, policy="keep_last", keep_turns=1, threshold=0.7)
    assert found.outcome is Outcome.FINISHED

    def unit(name):
        return f"{name}{EOS} [{name}:{'x' * 20}] "

    assert contexts(codec, found) == [
        "Task.",
        "Task." + unit("a"),
        "Task." + unit("a") + unit("b"),
        "Task." + unit("c"),  # three turns would pass 77 of 110 tokens
        "Task." + unit("c") + unit("d"),
    ]
    first, second = found.samples()
    assert sum(first.loss_mask) == 3 * 2 and sum(second.loss_mask) == 2 + len("done") + 1


def test_old_observations_are_shortened_once(codec):
    script = ["a", "b", "c", "done"]
    found = play(
        codec, script, Talks(), 110, policy="shorten", keep_turns=1, max_old_observation=10
    )
    assert found.outcome is Outcome.FINISHED
    last = contexts(codec, found)[-1]
    assert last == f"Task.a{EOS} [a:xxx...b{EOS} [b:xxx...c{EOS} [c:{'x' * 20}] "


def test_old_messages_are_shortened_too(codec):
    made = PerTrajectory(Chats)
    found = play(
        codec,
        ["a", "b", "done"],
        made,
        150,
        CHAT,
        policy="shorten",
        keep_turns=1,
        threshold=0.6,
        max_old_observation=9,
    )
    assert found.outcome is Outcome.FINISHED
    assert "heard ..." in contexts(codec, found)[-1]
    assert f"heard b {'y' * 20}" in contexts(codec, found)[-1]


def test_a_summary_takes_the_place_of_everything_but_the_task(codec):
    script = ["a", "b", "SUM", "done"]
    found = play(
        codec,
        script,
        Talks(),
        110,
        policy="summarise",
        threshold=0.5,
        request="Sum up.",
        resume="Go.",
    )
    assert found.outcome is Outcome.FINISHED
    asked = contexts(codec, found)[2]
    assert asked.endswith(f"b{EOS} [b:{'x' * 20}] \nSum up.\n")
    assert contexts(codec, found)[3] == f"Task.SUM{EOS}\nGo.\n"
    assert [turn.text for turn in found.turns] == script
    assert [len(turn.tool_calls) for turn in found.turns] == [1, 1, 0, 1]  # it saw no summary
    first, second = found.samples()
    learned = [i for i, m in zip(first.token_ids, first.loss_mask, strict=True) if m]
    assert codec.decode(learned) == f"a{EOS}b{EOS}SUM{EOS}"
    assert sum(second.loss_mask) == len("done") + 1


def test_a_summary_in_a_chat_is_asked_for_and_answered_by_messages(codec):
    script = ["a", "b", "SUM", "c", "done"]
    found = play(
        codec,
        script,
        PerTrajectory(Chats),
        260,
        CHAT,
        policy="summarise",
        threshold=0.42,
        request="Sum up.",
        resume="Go.",
    )
    assert found.outcome is Outcome.FINISHED
    assert found.state == ["a", "b", "c", "done"]
    before, after = contexts(codec, found)[2:4]
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    assert before.endswith(turn.format("user", "Sum up.") + "<|im_start|>assistant\n")
    assert after == (
        turn.format("user", "Task.")
        + turn.format("assistant", "SUM")
        + turn.format("user", "Go.")
        + "<|im_start|>assistant\n"
    )


def test_markup_of_an_environments_own_is_not_edited(codec):
    class Marked(Talks):
        control_tokens = True

    for policy in ("shorten", "summarise"):
        with pytest.raises(ConfigError, match="markup"):
            play(codec, ["done"], Marked(), 100, policy=policy)
    assert play(codec, ["done"], Marked(), 100, policy="keep_last").outcome is Outcome.FINISHED
