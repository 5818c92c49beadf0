"""Gymnasium's own environments in the loop, against a scripted model."""

import asyncio
from itertools import islice

import pytest

gymnasium = pytest.importorskip("gymnasium")

from agent_r1.data.episodes import episodes  # noqa: E402
from agent_r1.errors import ConfigError  # noqa: E402
from agent_r1.reward.agent import environment  # noqa: E402
from agent_r1.rollout.agent_loop import AgentLoop  # noqa: E402
from agent_r1.rollout.codec import Codec  # noqa: E402
from agent_r1.rollout.limits import LoopLimits, Sampling  # noqa: E402
from agent_r1.testing import ScriptedEngine, byte_tokenizer  # noqa: E402
from agent_r1.tool import make_env  # noqa: E402
from agent_r1.types import Outcome, Task  # noqa: E402

TEXT = Task("t", "Go.", extra={"seed": 3})
LAKE = {"id": "FrozenLake-v1", "options": {"is_slippery": False}}


@pytest.fixture(scope="module")
def codec():
    return Codec(byte_tokenizer())


def play(codec, script, task=TEXT, index=0, sampling=None, **options):
    envs = make_env("gymnasium", [], **options)
    engine = ScriptedEngine(codec.tokenizer, script)
    loop = AgentLoop(engine, codec, envs, LoopLimits(20, 4000))
    return asyncio.run(loop.run(task, "g", index, sampling or Sampling()))


def test_frozen_lake_is_walked_to_its_goal_and_rewards_by_itself(codec):
    route = ["down", "down", "right", "right", "down", "right"]
    trajectory = play(codec, route, **LAKE)
    assert trajectory.opening == (
        "Go.\nWrite your next action, one of: left, down, right, up.\n\nPFFF\nFHFH\nFFFH\nHFFG\n"
    )
    assert trajectory.turns[0].observation_text == "\nSFFF\nPHFH\nFFFH\nHFFG\n"
    assert trajectory.outcome is Outcome.FINISHED
    assert environment(trajectory).value == 1.0
    assert trajectory.state == {"return": 1.0, "steps": 6, "invalid": 0, "info": {"prob": 1}}
    fallen = play(codec, ["right", "down"], **LAKE)
    assert fallen.outcome is Outcome.FINISHED and environment(fallen).value == 0.0


def test_a_task_brings_its_own_map_and_a_chat_is_answered_in_messages(codec):
    task = Task("t", ({"role": "user", "content": "Go."},), extra={"options": {"desc": ["SG"]}})
    trajectory = play(codec, ["left", "right"], task, instructions="", **LAKE)
    assert trajectory.opening.startswith("<|im_start|>user\nGo.\n\nPG<|im_end|>")
    assert trajectory.turns[0].observation_text.startswith("\n<|im_start|>user\nPG<|im_end|>")
    assert environment(trajectory).value == 1.0


def test_what_is_no_action_changes_nothing_and_has_an_end(codec):
    trajectory = play(
        codec,
        ["hover", "<action>right</action> or not", "north", "up up"],
        invalid_reward=-0.5,
        max_invalid=3,
        **LAKE,
    )
    assert [call.success for call in trajectory.tool_calls] == [False, True, False, False]
    assert [turn.reward for turn in trajectory.turns] == [-0.5, 0.0, -0.5, -0.5]
    assert "SPFF" in trajectory.turns[1].observation_text
    assert "That is no action. Write one of: left" in trajectory.turns[0].observation_text
    assert trajectory.outcome is Outcome.TURN_LIMIT


def test_blackjack_deals_siblings_the_same_cards(codec):
    deals = [play(codec, ["hit", "stick"], index=i, id="Blackjack-v1") for i in range(3)]
    assert "Dealer shows: " in deals[0].opening and "one of: stick, hit" in deals[0].opening
    assert len({deal.opening + deal.transcript for deal in deals}) == 1
    other = play(codec, ["stick"], Task("t", "Go.", extra={"seed": 4}), id="Blackjack-v1")
    assert other.opening != deals[0].opening


def test_noise_of_a_trajectory_is_its_own_and_repeats(codec):
    options = {"id": "Blackjack-v1", "noise": "trajectory"}
    deals = [play(codec, ["hit", "stick"], index=i, **options) for i in range(8)]
    again = play(codec, ["hit", "stick"], index=5, **options)
    assert len({deal.opening for deal in deals}) == 1
    assert len({deal.transcript for deal in deals}) > 1
    assert again.transcript == deals[5].transcript


def test_a_taxi_ride(codec):
    env = gymnasium.make("Taxi-v4")
    row, column, passenger, destination = env.unwrapped.decode(env.reset(seed=3)[0])
    stands = {"R": (0, 0), "G": (0, 4), "Y": (4, 0), "B": (4, 3)}
    trajectory = play(codec, ["pickup", "jump"] * 8, id="Taxi-v4")
    assert trajectory.turns[0].reward == (-10 if stands["RGYB"[passenger]] != (row, column) else -1)
    assert f"Passenger: {'RGYB'[passenger]}. Destination: {'RGYB'[destination]}." in (
        trajectory.opening
    )
    line = trajectory.opening.split("\n")[4 + row]
    assert line[1 + 2 * column] == "X"
    assert trajectory.outcome is Outcome.TURN_LIMIT


def test_cliff_walking_and_pictures_of_the_environment(codec):
    words = play(codec, ["up"] + ["right"] * 11 + ["down"], id="CliffWalking-v1")
    assert environment(words).value == -13 and words.outcome is Outcome.FINISHED
    assert words.turns[0].observation_text.split("\n")[3].startswith("P...")
    drawn = play(codec, ["up"], id="CliffWalking-v1", options={"render_mode": "ansi"})
    assert "o  o  o" in drawn.opening


def test_numbers_serve_where_nobody_wrote_words(codec):
    trajectory = play(codec, ["2", "1", "0"], id="CartPole-v1")
    assert "a whole number from 0 to 1" in trajectory.opening
    assert [call.success for call in trajectory.tool_calls[:3]] == [False, True, True]
    assert len(trajectory.turns[1].observation_text.split()) == 4
    pushed = play(codec, ["3", "-1.5"], id="Pendulum-v1")
    assert [call.success for call in pushed.tool_calls[:2]] == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "FrozenLke-v1"}, "FrozenLake"),
        ({**LAKE, "options": {"slippery": True}}, "slippery"),
        ({**LAKE, "actions": ["left", "right"]}, "names 2 actions"),
        ({**LAKE, "action_pattern": "left"}, "exactly one group"),
        ({**LAKE, "noise": "both"}, "'task' or 'trajectory'"),
        ({**LAKE, "modules": ["no_such_module"]}, "no_such_module"),
        ({**LAKE, "acts": ["left"]}, "did you mean 'act'"),
        ({}, "id"),
    ],
)
def test_a_wrong_option_is_refused_before_the_run(options, said):
    with pytest.raises(ConfigError, match=said):
        make_env("gymnasium", [], **options)


def test_a_picture_needs_a_function_of_the_user(tmp_path):
    class Camera(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), "uint8")
        action_space = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)])

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, True, False, {}

    gymnasium.register("Camera-v0", Camera)
    file = tmp_path / "eyes.py"
    file.write_text("def see(image, env): return str(image.shape)\ndef act(text, env): return (1,)")
    with pytest.raises(ConfigError, match=r"env_kwargs\.act="):
        make_env("gymnasium", [], id="Camera-v0")
    with pytest.raises(ConfigError, match=r"env_kwargs\.observe="):
        make_env("gymnasium", [], id="Camera-v0", act=f"{file}:act")
    options = {"disable_env_checker": True}
    trajectory = play(
        Codec(byte_tokenizer()), ["x"], id="Camera-v0", act=f"{file}:act", observe=f"{file}:see",
        options=options,
    )  # fmt: skip
    assert "(64, 64, 3)" in trajectory.opening and trajectory.outcome is Outcome.FINISHED


def test_episodes_of_training_and_validation_share_no_seed():
    train = [t.extra["seed"] for t in islice(episodes("train", 0), 500)]
    held = [t.extra["seed"] for t in islice(episodes("val", 7), 500)]
    assert not {s % 2 for s in train} & {s % 2 for s in held}
    assert len(set(train)) == 500
    (task,) = islice(episodes(prompt="Go.", chat=False, options={"a": 1}), 1)
    assert task.prompt == "Go." and task.extra == {"seed": 0, "options": {"a": 1}}
