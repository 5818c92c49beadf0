"""Tools of real MCP servers: a process of our own over stdio, and one over HTTP."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError, ToolError
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool import CallContext, ToolResult, call_context, make_env
from agent_r1.tool.open import open_tools
from agent_r1.tool.tools.mcp import open_mcp_servers
from agent_r1.types import Outcome, Task

pytest.importorskip("mcp")
SHOP = str(Path(__file__).with_name("mcp_shop.py"))
STDIO = {"command": sys.executable, "args": [SHOP]}


@contextmanager
def tools_of(**servers):
    with open_mcp_servers(servers) as tools:
        yield {tool.name: tool for tool in tools}


@contextmanager
def trajectory(name):
    token = call_context.set(CallContext(name, 0))
    try:
        yield
    finally:
        call_context.reset(token)


@pytest.fixture(scope="module")
def shop():
    with tools_of(shop=STDIO) as tools:
        yield tools


def test_the_servers_tools_are_discovered_with_their_schemas(shop):
    assert list(shop) == ["price", "put", "leaflet", "burn", "burn_once", "secrets"]
    function = shop["price"].tool_description["function"]
    assert function["description"] == "The price of an article in cents."
    assert function["parameters"]["properties"]["article"]["type"] == "string"
    assert function["parameters"]["required"] == ["article"]


def test_a_call_gives_text_and_the_servers_errors_are_failed_calls(shop):
    assert shop["price"].execute({"article": "tea"}) == ToolResult("3", True)
    assert asyncio.run(shop["price"].aexecute({"article": "ham"})) == ToolResult("5", True)
    assert not shop["price"].execute({"article": "gold"}).success
    assert "'article' is a required property" in shop["price"].execute({}).content


def test_a_result_is_cut_where_the_configuration_says():
    with tools_of(shop={**STDIO, "max_result_length": 200}) as tools:
        content = tools["leaflet"].execute({"pages": 1000}).content
    assert len(content) <= 200
    assert content.startswith("offer offer") and "characters cut" in content


def test_many_calls_run_at_once_over_one_connection(shop):
    async def all_of_them():
        calls = (shop["price"].aexecute({"article": a}) for a in ["tea", "ham"] * 20)
        return await asyncio.gather(*calls)

    assert [r.content for r in asyncio.run(all_of_them())] == ["3", "5"] * 20


def test_a_dead_server_is_an_error_of_the_tool_and_the_next_call_connects_anew(shop):
    with pytest.raises(ToolError, match=r"the MCP server 'shop' .* did not answer 'burn'"):
        shop["burn"].execute({})
    assert shop["price"].execute({"article": "tea"}) == ToolResult("3", True)


def test_only_a_call_that_may_be_repeated_is(shop, tmp_path):
    marker = tmp_path / "burned"
    assert shop["burn_once"].execute({"marker": str(marker)}) == ToolResult("still here", True)
    assert marker.exists()


def test_a_server_that_dies_ends_its_trajectory_with_tool_error(shop):
    tokenizer = byte_tokenizer()
    call = '<tool_call>{{"name": "{}", "arguments": {}}}</tool_call>'
    env = make_env("nous", list(shop.values()))

    def run(name, arguments):
        engine = ScriptedEngine(tokenizer, [call.format(name, arguments), "Done."])
        loop = AgentLoop(engine, Codec(tokenizer), env, LoopLimits(4, 4000))
        return asyncio.run(loop.run(Task("t", "?"), "g", 0, Sampling()))

    lost = run("burn", "{}")
    assert lost.outcome is Outcome.TOOL_ERROR and "MCP server 'shop'" in lost.error
    fine = run("price", '{"article": "tea"}')
    assert fine.outcome is Outcome.FINISHED
    assert "<tool_response>\n3\n</tool_response>" in fine.transcript


def test_trajectories_with_sessions_of_their_own_share_no_state():
    with tools_of(shop={**STDIO, "session": "trajectory"}) as tools:
        put = tools["put"]
        assert put.keeps_state
        with trajectory("a"):
            assert put.execute({"article": "tea"}).content == "tea"
        with trajectory("b"):
            assert put.execute({"article": "ham"}).content == "ham"
        with trajectory("a"):
            assert put.execute({"article": "ham"}).content == "tea, ham"
            put.end_trajectory("a")
            assert put.execute({"article": "tea"}).content == "tea"


def test_only_named_variables_reach_the_process(monkeypatch):
    monkeypatch.setenv("SHOP_TOKEN", "secret")
    monkeypatch.setenv("SHOP_OTHER", "secret")
    server = {**STDIO, "env": {"SHOP_LANGUAGE": "en"}, "env_from": ["SHOP_TOKEN"]}
    with tools_of(shop=server) as tools:
        assert tools["secrets"].execute({}).content == "SHOP_LANGUAGE,SHOP_TOKEN"


# --- HTTP ----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def http_server(port):
    process = subprocess.Popen(
        [sys.executable, SHOP, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def test_a_server_over_http_works_goes_away_and_comes_back():
    port = free_port()
    with http_server(port):
        servers = {"shop": {"url": f"http://127.0.0.1:{port}/mcp", "tools": ["price", "put"]}}
        opened = open_mcp_servers(servers)
        tools = {tool.name: tool for tool in opened.__enter__()}
        assert list(tools) == ["price", "put"]
        assert tools["price"].execute({"article": "tea"}) == ToolResult("3", True)
    try:
        with pytest.raises(ToolError, match="MCP server 'shop'"):
            tools["put"].execute({"article": "tea"})
        with http_server(port):
            assert tools["put"].execute({"article": "ham"}).content == "ham"
    finally:
        opened.__exit__(None, None, None)


# --- what can be wrong ---------------------------------------------------------------------


def opened(**servers):
    with open_mcp_servers(servers):
        raise AssertionError("it opened")


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({}, "needs either a command to start .* or the url"),
        ({"comand": "x"}, "takes no 'comand', did you mean 'command'"),
        ({"command": "x", "args": 3}, r"tool\.mcp\.shop\.args"),
        ({**STDIO, "tools": ["prices"]}, "has no 'prices', did you mean 'price'"),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(server, said):
    with pytest.raises(ConfigError, match=said):
        opened(shop=server)


def test_two_tools_of_one_name_need_a_prefix():
    with pytest.raises(ConfigError, match="two MCP servers have a tool called 'burn'"):
        opened(a=STDIO, b=STDIO)
    with tools_of(a={**STDIO, "tools": ["price"]}, b={**STDIO, "prefix": "b_"}) as tools:
        assert tools["b_price"].execute({"article": "tea"}) == ToolResult("3", True)


def test_a_server_that_cannot_be_started_is_named_with_what_it_wrote():
    broken = {"command": sys.executable, "args": ["-c", "raise SystemExit('no licence')"]}
    with pytest.raises(ToolError, match=r"(?s)MCP server 'shop'.*it wrote:\nno licence"):
        opened(shop=broken)
    with pytest.raises(ToolError, match="cannot be reached: FileNotFoundError"):
        opened(shop={"command": "/no/such/program"})
    with pytest.raises(ToolError, match="cannot be reached"):
        opened(shop={"url": f"http://127.0.0.1:{free_port()}/mcp"})


def test_the_configuration_adds_the_servers_tools_and_ends_their_threads():
    before = threading.active_count()
    settings = [
        "tool.tools=[]",
        f"tool.mcp.shop.command={sys.executable}",
        f"tool.mcp.shop.args=[{SHOP}]",
        "tool.mcp.shop.tools=[put]",
    ]
    config = load_config(None, settings, environ={})
    with open_tools(config.tool, config.sandbox) as tools:
        assert [tool.name for tool in tools] == ["put"]
    assert threading.active_count() == before
