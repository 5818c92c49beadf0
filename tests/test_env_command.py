"""``agent-r1 env``: what a user sees of environments before a model does."""

import json

import pytest
from click.testing import CliRunner

from agent_r1.cli import cli
from agent_r1.errors import ConfigError, EnvironmentContractError, RegistryError
from agent_r1.testing import check_environment
from agent_r1.tool import Environment, Start, Step
from agent_r1.tool.base import call_context
from agent_r1.tool.protocol import PerTrajectory

GAME = '''
import random
from agent_r1.tool import Environment, Start, Step
from agent_r1.tool.base import call_context

class Guess(Environment):
    """Find a number between 0 and 9.

    Args:
        limit: guesses.
    """

    def __init__(self, limit: int = 5):
        self.limit, self.asked = limit, 0

    def reset(self, task):
        self.secret = random.Random(call_context.get().seed).randrange(10)
        return Start("Guess a number between 0 and 9.\\n")

    def step(self, action):
        self.asked += 1
        digits = [c for c in action if c in "0123456789"]
        out = self.asked >= self.limit
        if not digits:
            return Step("A digit, please.\\n", truncated=out)
        if int(digits[-1]) == self.secret:
            return Step(reward=1.0, terminated=True)
        higher = int(digits[-1]) < self.secret
        return Step("Higher.\\n" if higher else "Lower.\\n", reward=-0.1, truncated=out)
'''


@pytest.fixture
def game(tmp_path):
    file = tmp_path / "game.py"
    file.write_text(GAME)
    return f"{file}:Guess"


def run(*arguments, said=""):
    return CliRunner().invoke(cli, ["env", *arguments], input=said, catch_exceptions=False)


def test_every_name_is_listed_with_a_sentence():
    shown = run("list").output
    for name in ("retool", "nous", "search_r1", "agent"):
        assert any(line.startswith(name) and len(line.split()) > 4 for line in shown.splitlines())


def test_options_and_the_end_of_a_turn_are_shown(game):
    assert "limit: int = 5" in run("show", game).output
    shown = run("show", "retool").output
    assert "A turn ends at: '</code>'" in shown and "tool.tools" in shown


def test_a_name_that_is_none_is_told_with_the_nearest():
    with pytest.raises(RegistryError, match="did you mean 'nous'"):
        run("show", "nos")


def test_an_environment_that_keeps_its_contract(game):
    done = run("check", game, "--text", "3", "--text", "7")
    assert done.exit_code == 0 and "keeps its contract" in done.output


def test_a_person_plays_and_the_episode_becomes_a_trace(game, tmp_path):
    trace = tmp_path / "traces.jsonl"
    said = "".join(f"{digit}\n" for digit in range(10))
    done = run("play", game, "tool.env_kwargs.limit=10", "--save", str(trace), said=said)
    assert done.exit_code == 0
    assert done.output.count("Guess a number") == 1 and "context" in done.output
    assert "finished after" in done.output and done.output.rstrip().endswith(str(trace))
    row = json.loads(trace.read_text())
    guesses = [part["text"] for part in row["segments"] if part["role"] == "model"]
    assert guesses == [str(digit) for digit in range(len(guesses))]
    assert row["prompt"] == "Guess a number between 0 and 9.\n"
    assert all("Higher." in p["text"] for p in row["segments"] if p["role"] == "tool")


def test_what_is_written_behind_a_stop_string_is_cut_as_the_models_would_be():
    said = "Let me see.\\\n<code>print(6 * 7)</code> and more\nThe answer is \\boxed{42}\n"
    done = run("play", "retool", "--prompt", "What is 6 * 7?", said=said)
    assert "<interpreter>\n42\n</interpreter>" in done.output
    assert "replaced" not in done.output and "finished after 2 turns" in done.output


def test_an_agent_that_owns_its_loop_cannot_be_played(tmp_path):
    agent = tmp_path / "mine.py"
    agent.write_text("def run(call):\n    return 'done'\n")
    with pytest.raises(ConfigError, match="asks a model itself"):
        run("play", "agent", f"tool.env_kwargs.run={agent}:run", "tool.tools=[]")


class Fair(Environment):
    """Says how often it was asked, and draws from the seed."""

    def __init__(self):
        self.asked = 0

    def reset(self, task):
        return Start(f"{task.id} {call_context.get().seed}")

    def step(self, action):
        self.asked += 1
        return Step(str(self.asked), terminated=self.asked == 3)


class Leaky(Fair):
    seen: list = []  # noqa: RUF012  # the fault that is looked for

    def step(self, action):
        self.seen.append(action)
        return Step(str(len(self.seen)))


class Raising(Fair):
    def step(self, action):
        return Step(str(int(action)))


class Rude(Fair):
    def step(self, action):
        return "text"


class Secretive(Fair):
    @property
    def state(self):
        return {1, 2}


class Together(Fair):
    """Goes wrong only where two episodes are under way at once."""

    open = 1  # the first is made and closed to see whether it can be made

    def reset(self, task):
        type(self).open += 1
        return Start()

    def step(self, action):
        return Step("alone" if type(self).open == 1 else "beside")

    async def astep(self, action):
        import asyncio

        await asyncio.sleep(0.02)
        return self.step(action)

    def close(self):
        type(self).open -= 1


def test_a_fair_environment_passes():
    report = check_environment(PerTrajectory(Fair), texts=("a", "b"))
    assert report.steps > 10 and "none of your texts" in report.warnings[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Leaky, "another way the second time"),
        (Raising, "invalid literal"),
        (Rude, "must return a Step"),
        (Secretive, "not plain data"),
        (Together, "beside others"),
    ],
)
def test_a_fault_is_found_and_named(kind, said):
    with pytest.raises(EnvironmentContractError, match=said):
        check_environment(PerTrajectory(kind), texts=("a",))


def test_the_callers_context_is_left_alone():
    before = call_context.get()
    check_environment(PerTrajectory(Fair))
    assert call_context.get() == before
