"""Finding tools and environments by name, path and file."""

import importlib
import textwrap

import pytest

from agent_r1.errors import ConfigError, RegistryError
from agent_r1.registry import Registry
from agent_r1.testing import FakeExecutor
from agent_r1.tool import BaseTool, BaseToolEnv, ToolResult, register_env, register_tool
from agent_r1.tool.envs import _default_env
from agent_r1.tool.envs.nous import NousToolEnv
from agent_r1.tool.envs.retool import ReToolEnv
from agent_r1.tool.registry import make_env, make_tool
from agent_r1.tool.tools import _default_tool
from agent_r1.tool.tools.python import PythonTool

GAME = """
from dataclasses import dataclass
from agent_r1.tool import BaseToolEnv

@dataclass
class Board:
    size: int

class Game(BaseToolEnv):
    def __init__(self, size: int = 3):
        self.board = Board(size)
    def step(self, raw_response):
        return str(self.board.size), [], True

number = 4
"""


@pytest.fixture
def game_file(tmp_path):
    file = tmp_path / "my game.py"
    file.write_text(GAME)
    return file


def test_the_projects_own_names():
    assert _default_env("retool") is ReToolEnv
    assert _default_env("nous") is NousToolEnv
    assert isinstance(_default_tool("python", executor=FakeExecutor()), PythonTool)


def test_a_registered_name_and_a_dotted_path():
    @register_env("test-echo")
    class Echo(BaseToolEnv):
        def step(self, raw_response):
            return raw_response, [], False

    @register_tool("test-say")
    class Say(BaseTool):
        def execute(self, args):
            return ToolResult("hello")

    assert _default_env("test-echo") is Echo
    assert _default_tool("test-say").execute({}).content == "hello"
    assert _default_env("agent_r1.tool.envs.retool:ReToolEnv") is ReToolEnv
    assert _default_env("agent_r1.tool.envs.retool.ReToolEnv") is ReToolEnv


def test_a_class_in_a_file(game_file):
    game = make_env(f"{game_file}:Game", [], size=5)
    assert game.step("") == ("5", [], True)
    assert type(game) is _default_env(f"{game_file}:Game")  # imported once


def test_a_name_that_is_taken_stays_taken():
    def define(base):
        class Mine(base):
            def step(self, raw_response):
                return "", [], False

        return Mine

    with pytest.raises(RegistryError, match=r"'retool' is taken by agent_r1\.tool\.envs\.retool"):
        register_env("retool")(define(BaseToolEnv))
    register_env("test-mine")(define(BaseToolEnv))
    register_env("test-mine")(define(BaseToolEnv))  # the same cell of a notebook, run again
    with pytest.raises(RegistryError, match="'test-mine' is taken"):
        register_env("test-mine")(ReToolEnv)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retol", "no tool environment is called 'retol', did you mean 'retool'.*known: .*nous"),
        ("nowhere.at_all:Env", "there is no module 'nowhere'"),
        ("agent_r1.tool.nowhere:Env", "there is no module 'agent_r1.tool.nowhere'"),
        ("agent_r1.tool.envs.retool:RetoolEnv", "has no 'RetoolEnv', did you mean 'ReToolEnv'"),
        ("agent_r1.tool.text:truncate", "is not a class derived from .*BaseToolEnv"),
        ("missing.py:Env", "there is no file .*missing.py"),
        (":Env", "is no path"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(name, message):
    with pytest.raises(RegistryError, match=message):
        _default_env(name)


def test_a_file_that_fails_says_how_and_can_be_mended(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(RegistryError, match=r"importing it failed: ZeroDivisionError"):
        _default_env(f"{file}:Game")
    file.write_text(textwrap.dedent(GAME))
    assert _default_env(f"{file}:Game").__name__ == "Game"
    with pytest.raises(RegistryError, match="4 is not a class"):
        _default_env(f"{file}:number")


def test_a_missing_import_inside_a_module_is_not_called_a_missing_module(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RegistryError, match="importing it failed: No module named 'not_installed"):
        _default_env("needs_more:Env")


def test_entry_points_of_installed_packages(tmp_path, monkeypatch):
    (tmp_path / "plugin_env.py").write_text(GAME)
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[agent_r1.envs]\ngame-plugin = plugin_env:Game\nbroken-plugin = plugin_env:Gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert _default_env("game-plugin").__module__ == "plugin_env"
    with pytest.raises(RegistryError, match="'broken-plugin' of an installed package cannot be"):
        _default_env("broken-plugin")
    with pytest.raises(RegistryError, match="did you mean 'game-plugin'"):
        _default_env("game-plugn")


def test_options_that_do_not_fit_are_named(game_file):
    with pytest.raises(ConfigError, match=r"'siz'.*did you mean 'size'\?; it takes: size"):
        make_env(f"{game_file}:Game", [], siz=5)
    with pytest.raises(ConfigError, match="'tools'"):
        make_env(f"{game_file}:Game", [make_tool("python", executor=FakeExecutor())])
    with pytest.raises(ConfigError, match="'sessions', did you mean 'session'"):
        make_tool("python", sessions=True)


def test_tools_reach_the_environment_as_objects():
    tool = make_tool("python", executor=FakeExecutor("4"))
    env = make_env("retool", [tool], max_tool_response_length=10)
    assert env.step("<code>1</code>")[0] == "\n<interpreter>\n4\n</interpreter>\n"


def test_names_are_listed_sorted():
    registry = Registry("thing", builtin={"b": "x:y"})
    registry.register("a")(object())
    assert registry.names() == ["a", "b"]
