"""TextArena's own games in the loop, against a scripted model."""

import asyncio
import random
import sys
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the word lists that it imports
    textarena = pytest.importorskip("textarena")

from agent_r1.errors import ConfigError
from agent_r1.reward.agent import environment
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool import make_env
from agent_r1.tool.foreign.textarena import TextArenaEnv, random_move
from agent_r1.types import Outcome, Task

TEXT = Task("t", "Go.", extra={"seed": 3})
CROSSES = {"id": "TicTacToe-v0", "players": 2, "seat": 0}


@pytest.fixture(scope="module")
def codec():
    return Codec(byte_tokenizer())


def play(codec, script, task=TEXT, **options):
    envs = make_env("textarena", [], **options)
    engine = ScriptedEngine(codec.tokenizer, script)
    loop = AgentLoop(engine, codec, envs, LoopLimits(20, 9000))
    return asyncio.run(loop.run(task, "g", 0, Sampling()))


@pytest.fixture
def opponent(tmp_path, monkeypatch):
    (tmp_path / "rival.py").write_text(
        "def lowest(seen, seat, chance):\n"
        "    free = seen.rpartition('Available')[2]\n"
        "    return min(n for n in '012345678' if f\"'[{n}]'\" in free)\n"
    )
    return f"{tmp_path / 'rival.py'}:lowest"


def test_a_game_against_an_opponent_is_won_and_every_message_comes_once(codec, opponent):
    moves = ["[4]", "<action>2</action>", "[6]"]
    trajectory = play(codec, moves, opponent=opponent, **CROSSES)
    assert trajectory.outcome is Outcome.FINISHED and environment(trajectory).value == 1.0
    state = dict(trajectory.state)
    assert state.pop("game")["0"]["reason"] == "Player 0 has won!"
    assert state == {"seat": 0, "reward": 1.0, "moves": 5}
    first = trajectory.turns[0].observation_text
    assert "[Player 1] [0]" in first and "Player 0 placed their symbol (O) in cell 4." in first
    assert "You are Player 0" in trajectory.opening and "You are Player 0" not in first
    assert first.count("Available Moves") == 2 and "'[0]'" not in first.rpartition("Available")[2]
    assert "[Player 0]" not in first  # what the model wrote is in its context already


def test_a_refused_move_may_be_made_again_and_the_second_ends_the_game(codec, opponent):
    trajectory = play(codec, ["nonsense", "[99]"], opponent=opponent, **CROSSES)
    assert "does not follow the correct format" in trajectory.turns[0].observation_text
    assert [call.success for turn in trajectory.turns for call in turn.tool_calls] == [False, False]
    assert environment(trajectory).value == -1.0


def test_siblings_begin_alike_and_the_random_module_stays_as_it_was(codec):
    random.seed(5)
    expected = [random.random() for _ in range(3)]
    random.seed(5)
    found = []
    games = []
    for _ in range(3):
        games.append(play(codec, ["10", "5", "15"], id="GuessTheNumber-v0"))
        found.append(random.random())
    assert found == expected
    told = [[turn.observation_text for turn in game.turns] for game in games]
    assert told[0] == told[1] == told[2]


def test_the_other_seats_may_begin(codec, opponent):
    trajectory = play(codec, ["[4]"], opponent=opponent, **{**CROSSES, "seat": 1})
    assert "[Player 0] [0]" in trajectory.opening
    seats = set()
    for number in range(12):
        game = TextArenaEnv("TicTacToe-v0", players=2)
        start = game.reset(Task(str(number), "Go."))
        seats.add(game.state["seat"])
        assert f"You are Player {game.state['seat']}" in start.messages
    assert seats == {0, 1}


def test_a_random_opponent_takes_a_move_that_is_offered():
    seen = "Go first.\n\nAvailable Moves: '[1]', '[7]'"
    drawn = {random_move(seen, 1, random.Random(n)) for n in range(20)}
    assert drawn == {"[1]", "[7]"} and random_move("", 0, random.Random(0)) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "Nothing-v0"}, "Nothing-v0.*tool.env_kwargs.id"),
        ({"id": "TicTacToe-v0"}, "cannot be played by 1.*players"),
        ({**CROSSES, "seat": 2}, r"seat=2 must be one of \[0, 1\]"),
        ({"id": "TicTacToe-v0", "players": 2, "options": {"x": 1}}, "x=1.*failed"),
    ],
)
def test_what_cannot_work_is_found_before_the_run(options, words):
    with pytest.raises(ConfigError, match=words):
        make_env("textarena", [], **options)


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(ConfigError, match=r"pip install 'agent-r1\[textarena\]'"):
        make_env("textarena", [], id="TicTacToe-v0", players=2)
