"""Talking to a policy: what is shown, when, and what is remembered."""

import asyncio
import io
import os
import re
import signal

import pytest
from model_server import serving
from rich.console import Console

from agent_r1.cli import cli
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.trainer.chat import Session, chat

CODE = "I compute. <code>print(1)</code>"


class Tool(BaseToolEnv):
    stop_strings = ("</code>",)

    def step(self, raw_response):
        if not raw_response.endswith("</code>"):
            return "", [], False
        return "\n<interpreter>\n1\n</interpreter>\n", [True], True


def session(script, env=None, console=None):
    tokenizer = byte_tokenizer()
    engine = ScriptedEngine(tokenizer, script)
    loop = AgentLoop(engine, Codec(tokenizer), env or Tool(), LoopLimits(4, 1000))
    sampling = Sampling(stop=("</code>",))
    return Session(loop, engine, sampling, console or Console(file=io.StringIO()), True)


class Recording(io.StringIO):
    """Keeps each write, to see what came when."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text):
        if text:
            self.writes.append(text)
        return super().write(text)


def test_words_appear_one_by_one_and_the_tool_in_between():
    out = Recording()
    console = Console(file=out, width=20)
    trajectory = asyncio.run(session([CODE + "no", "It is 1."], console=console).ask("what?"))
    lines = re.sub(r"\d\.\d s", "0.0 s", out.getvalue())
    assert lines == (f"{CODE}\n<interpreter>\n1\n</interpreter>\n[tool worked, 0.0 s]\nIt is 1.\n")
    assert out.writes[0] == "I" and len(out.writes) > 20
    assert trajectory.transcript in lines.replace("[tool worked, 0.0 s]\n", "")


def test_a_model_cannot_steer_the_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=80)
    asyncio.run(session(["\x1b[2Jgone", "x"], console=console).ask("clear?"))
    assert "\x1b[2J" not in out.getvalue() and "[2Jgone" in out.getvalue()


def test_the_conversation_goes_on_with_what_was_said():
    talk = session([CODE, "It is 1."])
    asyncio.run(talk.ask("first"))
    asyncio.run(talk.ask("second"))
    prompt = talk.engine.calls[2].prompt_text
    assert [m["role"] for m in talk.history] == ["user", "assistant"] * 2
    assert "first" in prompt and "<interpreter>" in prompt and "It is 1." in prompt


def test_what_the_machinery_failed_to_answer_was_not_said():
    class Broken(Tool):
        def step(self, raw_response):
            raise RuntimeError("broken")

    out = io.StringIO()
    talk = session([CODE], Broken(), Console(file=out, width=500))
    asyncio.run(talk.ask("what?"))
    assert talk.history == () and "tool_error" in out.getvalue() and "broken" in out.getvalue()


class PressesCtrlC(Tool):
    pressed = False

    def step(self, raw_response):
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(raw_response)


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, even where the tests were started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_answer_and_not_the_conversation():
    out = io.StringIO()
    talk = session([CODE, "It is 1."], PressesCtrlC(), Console(file=out))
    with asyncio.Runner() as runner:
        try:
            runner.run(talk.ask("first"))
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("nothing was interrupted")
        assert talk.history == () and out.getvalue().endswith("\n")
        assert talk.engine.open_ids == set()
        talk.engine._turns.clear()
        runner.run(talk.ask("second"))
    assert [m["content"] for m in talk.history[:1]] == ["second"]


@pytest.mark.usefixtures("ctrl_c")
def test_the_whole_command_survives_ctrl_c(toy_config, tmp_path):
    """With the real engine, on the toy: the same prompt reads on."""
    out = io.StringIO()
    marker = tmp_path / "pressed"
    toy = toy_config().tool.env.replace("ToyEnv", "InterruptingEnv")
    config = toy_config(
        "tool.max_turns=2",
        f"tool.env={toy}",
        f"tool.env_kwargs={{at: chat, marker: {marker}}}",
        f"actor_rollout_ref.rollout.stop_token_ids={list(range(256))}",
    )
    lines = iter(["hello", "again", "/new", "more", "/quit"])
    chat(config, console=Console(file=out, width=200), read=lambda: next(lines))
    shown = out.getvalue()
    assert marker.exists() and shown.count("the question is forgotten") == 1
    assert "/quit ends" in shown and shown.count("[tool worked") >= 2


def test_one_question_is_answered_plainly(toy_config):
    out = io.StringIO()
    chat(toy_config("tool.max_turns=2"), "one question", console=Console(file=out, width=200))
    assert out.getvalue().count("\n") > 1 and "/quit" not in out.getvalue()


def test_a_server_can_be_talked_to(tmp_path, capsys):
    (tmp_path / "env.py").write_text(
        "from agent_r1.tool.base import BaseToolEnv\n"
        "class Env(BaseToolEnv):\n"
        "    def step(self, raw_response):\n"
        "        return '', [], False\n"
    )
    with serving(lambda body: f"You said: {body['messages'][-1]['content']}") as server:
        words = ["chat", "--server", server.url, "-m", "hello there"]
        words += [f"tool.env={tmp_path}/env.py:Env", "tool.tools=[]"]
        cli.main(words, standalone_mode=False)
    assert capsys.readouterr().out == "You said: hello there\n"
