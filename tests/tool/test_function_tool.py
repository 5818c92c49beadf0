"""Functions as tools: what the model is told of them, and what calling them gives."""

import asyncio
import dataclasses
import datetime
import functools
from enum import Enum
from typing import Annotated, Literal

import pytest
from pydantic import Field

from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError, RegistryError, ToolError
from agent_r1.tool import FunctionTool, ToolResult, as_tool, make_env, make_tool, tool
from agent_r1.tool.open import open_tools


class Unit(Enum):
    CELSIUS = "C"
    KELVIN = "K"


@dataclasses.dataclass
class Place:
    city: str
    country: str = "Spain"


@tool
def weather(
    place: Place,
    day: datetime.date,
    unit: Unit = Unit.CELSIUS,
    hours: Annotated[list[int], Field(max_length=3)] = [],  # noqa: B006  # never changed
    style: Literal["short", "long"] | None = None,
) -> str:
    """The weather of one day.

    Past days are looked up, later ones are forecast.

    Args:
        place: where,
            as exactly as you know.
        day: which day.

    Returns:
        A sentence.
    """
    return f"{place.city}, {place.country}: {day.year} {unit.name} {hours} {style}"


def test_the_description_comes_from_signature_and_docstring():
    assert weather.tool_description == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of one day.\n\n"
            "Past days are looked up, later ones are forecast.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {
                        "$ref": "#/$defs/Place",
                        "description": "where, as exactly as you know.",
                    },
                    "day": {"type": "string", "format": "date", "description": "which day."},
                    "unit": {"$ref": "#/$defs/Unit", "default": "C"},
                    "hours": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "maxItems": 3,
                        "default": [],
                    },
                    "style": {
                        "anyOf": [{"type": "string", "enum": ["short", "long"]}, {"type": "null"}],
                        "default": None,
                    },
                },
                "required": ["place", "day"],
                "additionalProperties": False,
                "$defs": {
                    "Place": {
                        "type": "object",
                        "properties": {
                            "city": {"type": "string"},
                            "country": {"type": "string", "default": "Spain"},
                        },
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                    "Unit": {"type": "string", "enum": ["C", "K"]},
                },
            },
        },
    }


def test_arguments_reach_the_function_as_its_own_types():
    call = {"place": {"city": "Vigo"}, "day": "2024-02-29", "unit": "K", "hours": [6]}
    assert weather.execute(call) == ToolResult("Vigo, Spain: 2024 KELVIN [6] None", True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"day": "2024-02-29"}, "'place' is a required property"),
        ({"place": {"city": "Vigo"}, "day": "2023-02-29"}, "day: Input should be a valid date"),
        ({"place": {"city": "Vigo"}, "day": "2024-02-29", "unit": "F"}, "'F' is not one of"),
        ({"place": {"city": "Vigo"}, "day": "2024-02-29", "hours": [1, 2, 3, 4]}, "is too long"),
        ({"place": {"city": "Vigo"}, "day": "2024-02-29", "when": 1}, "'when' was unexpected"),
        ({"place": {"city": 3}, "day": "2024-02-29"}, "3 is not of type 'string'"),
    ],
)
def test_wrong_arguments_are_a_failed_call_that_says_which(wrong, said):
    result = weather.execute(wrong)
    assert not result.success
    assert said in result.content


def test_a_decorated_function_can_still_be_called():
    assert weather(Place("Vigo"), datetime.date(2020, 1, 1)).startswith("Vigo, Spain: 2020")


@pytest.mark.parametrize(
    ("value", "content", "success"),
    [
        ("text", "text", True),
        (None, "", True),
        (3, "3", True),
        ({"total": 1.5, "on": datetime.date(2020, 1, 2)}, '{"total":1.5,"on":"2020-01-02"}', True),
        ([Place("Vigo")], '[{"city":"Vigo","country":"Spain"}]', True),
        (ToolResult("nothing found", False), "nothing found", False),
    ],
)
def test_what_a_function_returns_is_shown(value, content, success):
    @tool
    def answer():
        """Answer."""
        return value

    assert answer.execute({}) == ToolResult(content, success)


def test_a_value_without_a_json_form_is_a_fault_of_the_tool():
    @tool
    def answer():
        """Answer."""
        return object()

    with pytest.raises(ToolError, match="returned a object, which has no JSON form"):
        answer.execute({})


def test_exceptions_are_the_tools_fault_unless_they_are_named():
    @tool(report=LookupError)
    def price(article: str) -> int:
        """The price of an article."""
        if article == "bug":
            raise RuntimeError("the database is gone")
        return {"tea": 3}[article]

    assert price.execute({"article": "tea"}) == ToolResult("3", True)
    assert price.execute({"article": "ham"}) == ToolResult("Error: 'ham'", False)
    with pytest.raises(RuntimeError, match="database"):
        price.execute({"article": "bug"})


def test_an_asynchronous_function_is_awaited_where_it_is_called():
    @tool(report=ValueError)
    async def slow(n: int) -> str:
        """Wait."""
        await asyncio.sleep(0)
        if n < 0:
            raise ValueError("not negative")
        return f"{n} in {id(asyncio.get_running_loop())}"

    async def both():
        loop = id(asyncio.get_running_loop())
        assert await slow.aexecute({"n": 1}) == ToolResult(f"1 in {loop}", True)
        assert await slow.aexecute({"n": -1}) == ToolResult("Error: not negative", False)
        return slow.execute({"n": 2})  # blocks, but does not fail, inside a running loop

    assert asyncio.run(both()).content.startswith("2 in ")
    assert slow.execute({"n": 3}).content.startswith("3 in ")


def test_a_synchronous_function_does_not_run_on_the_event_loop():
    @tool
    def blocking() -> bool:
        """Whether an event loop runs here."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return False
        return True

    assert asyncio.run(blocking.aexecute({})) == ToolResult("false", True)


def no_docstring(x: int):
    return x


def no_type(x):
    """Doc."""


def many(*xs: int):
    """Doc."""


def strange(x: asyncio.Queue):
    """Doc."""


def unknown(x: "Nowhere"):  # noqa: F821
    """Doc."""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_docstring, "'no_docstring' has no docstring"),
        (no_type, "argument 'x' of 'no_type' has no type"),
        (many, r"takes '\*xs: int'"),
        (strange, "no JSON form"),
        (unknown, "annotations of 'unknown' cannot be read"),
        (lambda: None, "has no name that a model could call"),
    ],
)
def test_a_function_that_cannot_be_described_is_refused_with_the_remedy(function, said):
    with pytest.raises(ToolError, match=said):
        FunctionTool(function)


def test_filled_in_parameters_are_hidden_from_the_model():
    def lookup(word: str, table: dict[str, str]) -> str:
        """Look a word up."""
        return table[word]

    bound = as_tool(functools.partial(lookup, table={"a": "1"}))
    assert list(bound.parameters["properties"]) == ["word"]
    assert bound.execute({"word": "a"}) == ToolResult("1", True)
    assert not bound.execute({"word": "a", "table": {"a": "2"}}).success


FILE = '''
from agent_r1.tool import tool

def double(x: int, by: int = 2) -> int:
    """Multiply."""
    return x * by

@tool(name="shout", report=ValueError)
async def loud(text: str) -> str:
    """Make it loud."""
    return text.upper()

limit = 3
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_functions_are_found_by_path_and_work_in_any_environment_with_tools(file):
    config = load_config(
        None,
        [
            f"tool.tools=['{file}:double','{file}:loud']",
            f"tool.tool_kwargs={{'{file}:double': {{by: 3}}}}",
        ],
        environ={},
    )
    with open_tools(config.tool, config.sandbox) as tools:
        assert [t.name for t in tools] == ["double", "shout"]
        assert list(tools[0].parameters["properties"]) == ["x"]
        env = make_env("nous", tools)
        text = (
            '<tool_call>{"name": "double", "arguments": {"x": 7}}</tool_call>'
            '<tool_call>{"name": "shout", "arguments": {"text": "hi"}}</tool_call>'
        )
        for observation, success, active in (env.step(text), asyncio.run(env.astep(text))):
            assert "<tool_response>\n21\n</tool_response>" in observation
            assert "<tool_response>\nHI\n</tool_response>" in observation
            assert (success, active) == ([True, True], True)


def test_a_path_to_something_else_and_a_wrong_option_say_what_is_wrong(file):
    with pytest.raises(RegistryError, match="nor a function"):
        make_tool(f"{file}:limit")
    with pytest.raises(ConfigError, match=r"takes no 'bi'.*did you mean 'by'"):
        make_tool(f"{file}:double", bi=3)
