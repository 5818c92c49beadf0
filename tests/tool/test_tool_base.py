"""The contract of tools and environments, as the base classes enforce it."""

import asyncio
import threading

import pytest

from agent_r1.errors import EnvironmentContractError, ToolArgumentError, ToolError
from agent_r1.tool.base import (
    BaseTool,
    BaseToolEnv,
    CallContext,
    ToolResult,
    call_context,
    normalise_tool_result,
    trigger_length,
    validate_step_result,
)
from agent_r1.tool.threads import to_daemon_thread
from agent_r1.types import Task

NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}


class Add(BaseTool):
    name = "add"
    description = "Add two numbers."
    parameters = NUMBERS

    def execute(self, args):
        return ToolResult(str(args["a"] + args["b"]), True)


def returning(value):
    class Tool(BaseTool):
        name = "odd"

        def execute(self, args):
            return value

    return Tool()


class Echo(BaseToolEnv):
    def step(self, raw_response):
        return f"[{raw_response}]", [True], raw_response != "end"


def test_a_result_unpacks_and_answers_by_key():
    result = ToolResult("4", True)
    content, success = result
    assert (content, success) == ("4", True)
    assert (result["content"], result["success"], result[0], result[1]) == ("4", True, "4", True)
    with pytest.raises(KeyError, match="'content' and 'success'"):
        result["output"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (ToolResult("x", False), ("x", False)),
        ({"content": "x", "success": False}, ("x", False)),
        ({"content": "x"}, ("x", True)),
        (("x", False), ("x", False)),
        ("x", ("x", True)),
    ],
)
def test_what_user_tools_return_is_normalised(raw, expected):
    assert normalise_tool_result(raw) == expected
    # also through execute: a caller that unpacks a dict would get its keys
    content, success = returning(raw).execute({})
    assert (content, success) == expected


@pytest.mark.parametrize("raw", [None, 4, {"output": "x"}, ("x",), ("x", "yes"), {"content": 4}])
def test_what_is_no_result_is_the_tools_fault(raw):
    with pytest.raises(ToolError, match=r"tool 'odd' returned .* return ToolResult"):
        returning(raw).execute({})


def test_arguments_are_checked_before_the_tool_runs():
    assert Add().execute({"a": 1, "b": 2}) == ("3", True)
    content, success = Add().execute({"a": 1, "b": "2"})
    assert not success
    assert content == "Error: invalid arguments for tool 'add': b: '2' is not of type 'number'"
    assert "'b' is a required property" in Add().execute({"a": 1}).content
    assert "not of type 'object'" in Add().execute([1, 2]).content
    with pytest.raises(ToolArgumentError):
        Add().validate_args({"a": 1})


def test_an_argument_error_raised_in_the_body_is_shown_and_any_other_error_is_not():
    class Picky(BaseTool):
        name = "picky"

        def execute(self, args):
            raise self.error

    picky = Picky()
    picky.error = ToolArgumentError("no such city")
    assert picky.execute({}) == ("Error: no such city", False)
    picky.error = ToolError("the service is down")
    with pytest.raises(ToolError, match="service is down"):
        picky.execute({})
    picky.error = KeyError("a bug")
    with pytest.raises(KeyError):
        picky.execute({})


def test_a_broken_schema_is_an_error_where_the_class_is_made():
    with pytest.raises(ToolError, match=r"Bad.parameters is no valid JSON schema at .*type"):
        type("Bad", (Add,), {"parameters": {"type": "objekt"}})
    with pytest.raises(ToolError, match="must describe an object"):
        type("Bad", (Add,), {"parameters": {"type": "array"}})


def test_parameters_set_on_an_instance_are_checked_too():
    tool = Add()
    tool.parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert not tool.execute({"a": 1}).success
    tool.parameters = {"type": "nonsense"}
    with pytest.raises(ToolError, match="no valid JSON schema"):
        tool.execute({"a": 1})


def test_a_subclass_calling_super_is_validated_once_more_and_no_worse():
    class Twice(Add):
        def execute(self, args):
            return ToolResult(super().execute(args).content * 2)

    assert Twice().execute({"a": 1, "b": 2}) == ("33", True)
    assert not Twice().execute({}).success


def test_an_async_tool_is_wrapped_like_a_sync_one():
    class Slow(Add):
        async def aexecute(self, args):
            await asyncio.sleep(0)
            return {"content": str(args["a"]), "success": True}

    assert asyncio.run(Slow().aexecute({"a": 1, "b": 2})) == ("1", True)
    assert not asyncio.run(Slow().aexecute({"a": 1})).success
    with pytest.raises(ToolError, match="async def"):
        type("NotAsync", (Add,), {"aexecute": lambda self, args: None})


def test_batch_execute_runs_together_keeps_order_and_context():
    together = threading.Barrier(4, timeout=20)

    class Meet(BaseTool):
        name = "meet"

        def execute(self, args):
            together.wait()
            return ToolResult(f"{args['i']}{call_context.get().trajectory_id}")

    call_context.set(CallContext("t", 0))
    assert [r.content for r in Meet().batch_execute([{"i": i} for i in range(4)])] == [
        "0t",
        "1t",
        "2t",
        "3t",
    ]
    assert Meet().batch_execute([]) == []


def test_the_description_is_what_chat_templates_expect():
    assert Add().tool_description == {
        "type": "function",
        "function": {"name": "add", "description": "Add two numbers.", "parameters": NUMBERS},
    }


def test_an_environment_needs_step_alone():
    env = Echo()
    assert asyncio.run(env.astep("a")) == ("[a]", [True], True)
    assert env.batch_step(["a", "end"]) == (["[a]", "[end]"], [[True], [True]], [True, False])
    assert env.for_trajectory(Task("t", "p")) is env
    assert env.stop_strings == ()
    env.close()
    with pytest.raises(NotImplementedError, match="Echo defines no extract_tool_calls"):
        env.stop("a")
    with pytest.raises(TypeError, match="abstract"):
        BaseToolEnv()


def test_astep_runs_off_the_loop_with_the_context():
    class Where(BaseToolEnv):
        def step(self, raw_response):
            context = call_context.get()
            on_main = threading.current_thread() is threading.main_thread()
            return f"{context.trajectory_id} {context.turn} {on_main}", [], False

    async def run():
        call_context.set(CallContext("group/3", 2))
        return await Where().astep("")

    assert asyncio.run(run())[0] == "group/3 2 False"


def test_a_hanging_step_can_be_given_up():
    released = threading.Event()

    class Hang(BaseToolEnv):
        def step(self, raw_response):
            released.wait()
            return "", [], False

    async def run():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Hang().astep(""), 0.01)
        released.set()  # its late result must go nowhere

    asyncio.run(run())


def test_more_steps_run_at_once_than_a_default_pool_has_threads():
    together = threading.Barrier(80, timeout=30)

    async def run():
        return await asyncio.gather(*(to_daemon_thread(together.wait) for _ in range(80)))

    assert sorted(asyncio.run(run())) == list(range(80))


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_step_raises_arrives(error):
    def fail():
        raise error

    async def run():
        with pytest.raises(type(error)):
            await to_daemon_thread(fail)

    try:
        asyncio.run(run())
    except (KeyboardInterrupt, SystemExit):  # asyncio also lets these two end the loop
        assert not isinstance(error, ValueError)


def test_stop_iteration_becomes_an_error_that_a_future_can_carry():
    async def run():
        with pytest.raises(RuntimeError, match="StopIteration"):
            await to_daemon_thread(next, iter(()))

    asyncio.run(run())


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        ("text", [True]),
        ("text", True, True),
        ("text", [True], "yes"),
        ("text", [1], True),
        (b"text", [], False),
        (None, [], False),
    ],
)
def test_a_wrong_step_result_names_environment_result_and_remedy(result):
    with pytest.raises(EnvironmentContractError) as error:
        validate_step_result(Echo(), result)
    assert "Echo.step returned" in str(error.value)
    assert type(result).__name__ in str(error.value)
    assert "(observation: str, success: list[bool], active: bool)" in str(error.value)


def test_a_step_result_may_hold_tuples_and_numpy_bools():
    import numpy as np

    result = validate_step_result(Echo(), ("x", (np.True_, False), np.bool_(True)))
    assert result == ("x", [True, False], True)
    assert all(type(flag) is bool for flag in (*result[1], result[2]))


def test_the_token_trigger_may_cut_and_nothing_else():
    class Cut(Echo):
        def process_responses_ids(self, tokenizer, raw_responses_ids):
            return [row[:2] for row in raw_responses_ids]

    class Change(Echo):
        def process_responses_ids(self, tokenizer, raw_responses_ids):
            return [[0, *row[1:]] for row in raw_responses_ids]

    assert trigger_length(Echo(), None, (5, 6, 7)) == 3
    assert trigger_length(Cut(), None, (5, 6, 7)) == 2
    with pytest.raises(EnvironmentContractError, match="prefix"):
        trigger_length(Change(), None, (5, 6, 7))


def test_an_abandoned_thread_does_not_keep_the_interpreter_alive():
    import subprocess
    import sys

    program = (
        "import asyncio, threading\n"
        "from agent_r1.tool.threads import to_daemon_thread\n"
        "async def main():\n"
        "    try: await asyncio.wait_for(to_daemon_thread(threading.Event().wait), 0.01)\n"
        "    except TimeoutError: print('given up')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "given up\n"
