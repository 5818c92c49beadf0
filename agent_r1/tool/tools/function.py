"""Plain Python functions as tools: the schema comes from signature and docstring."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json

from agent_r1.errors import ConfigError, ToolArgumentError, ToolError
from agent_r1.registry import nearest
from agent_r1.tool.base import BaseTool, ToolResult


class FunctionTool(BaseTool):
    """A tool that calls a function; :func:`tool` makes one, and so does a path to a function.

    The name is the function's, the description is its docstring up to the first section, and
    each parameter becomes a property whose type is the annotation and whose description is
    the docstring's (Google, NumPy and reST style are read). Types are pydantic's: ``Literal``,
    ``Enum``, dates, dataclasses, nested models, ``Annotated[int, Field(ge=1)]``. Arguments are
    checked against the JSON schema, then converted, so the function receives a ``date`` where
    it asks for one.

    A string is shown to the model as it is, a :class:`ToolResult` decides itself whether the
    call succeeded, ``None`` is empty text, and any other value is shown as JSON. An
    exception ends the trajectory with ``tool_error``, because it is a fault of the tool;
    exceptions of the types in ``report`` are shown to the model as a failed call.

    An ``async def`` function is awaited on the event loop of the agent loop.

    Args:
        fn: the function, or a bound method or ``functools.partial``. Parameters that a
            partial fills in are not part of the schema.
        name: another name than the function's.
        description: another description than the docstring's.
        report: types of exceptions whose message the model is to read.

    Raises:
        ToolError: the function cannot be described; the message says what to write.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        report: tuple[type[Exception], ...] = (),
    ) -> None:
        plain = fn
        while isinstance(plain, functools.partial):
            plain = plain.func
        self.name = str(name or getattr(plain, "__name__", ""))
        if not self.name.isidentifier():
            raise ToolError(f"{plain!r} has no name that a model could call; give tool(name=...)")
        self.fn = fn
        self._report = report
        self._is_async = inspect.iscoroutinefunction(plain)
        from docstring_parser import parse as parse_docstring

        doc = parse_docstring(inspect.getdoc(plain) or "")
        self.description = description or (doc.description or "").strip()
        if not self.description:
            raise ToolError(
                f"the function {self.name!r} has no docstring; write one, because it is what the "
                "model knows of the tool"
            )
        described = {p.arg_name: p.description or "" for p in doc.params}
        self._arguments = _arguments_model(fn, plain, self.name, described)
        self.parameters = _schema(self._arguments, self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, as if it had never been decorated."""
        return self.fn(*args, **kwargs)

    def with_arguments(self, values: Mapping[str, Any]) -> FunctionTool:
        """The same tool with parameters filled in, which the model then does not see.

        Raises:
            ConfigError: the function has no such parameter.
        """
        takes = list(inspect.signature(self.fn).parameters)
        for wrong in (value for value in values if value not in takes):
            raise ConfigError(
                f"the tool {self.name!r} takes no {wrong!r}{nearest(wrong, takes)}; it takes: "
                f"{', '.join(takes) or 'nothing'}"
            )
        return FunctionTool(
            functools.partial(self.fn, **values),
            name=self.name,
            description=self.description,
            report=self._report,
        )

    def execute(self, args: Mapping[str, Any]) -> ToolResult:
        if self._is_async:
            return _run(self.aexecute(args))
        converted = self._converted(args)
        try:
            return _shown(self.fn(**converted))
        except self._report as error:
            return _reported(error)

    async def aexecute(self, args: Mapping[str, Any]) -> ToolResult:
        if not self._is_async:
            return await super().aexecute(args)
        converted = self._converted(args)
        try:
            return _shown(await self.fn(**converted))
        except self._report as error:
            return _reported(error)

    def _converted(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the function's types."""
        try:
            model = self._arguments.model_validate(dict(args))
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]
            )
            raise ToolArgumentError(f"invalid arguments for tool {self.name!r}: {wrong}") from error
        fields = type(model).model_fields
        return {fields[name].alias or name: getattr(model, name) for name in model.model_fields_set}


@overload
def tool(fn: Callable[..., Any], /) -> FunctionTool: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    report: type[Exception] | tuple[type[Exception], ...] = (),
) -> Callable[[Callable[..., Any]], FunctionTool]: ...


def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    report: type[Exception] | tuple[type[Exception], ...] = (),
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of a function, which can still be called; options as of :class:`FunctionTool`.

    ::

        @tool(report=LookupError)
        def price(article: str) -> float:
            '''The price of an article, by its name in the catalogue.'''
            return PRICES[article]
    """
    types = (report,) if isinstance(report, type) else report
    if fn is None:
        return lambda function: FunctionTool(
            function, name=name, description=description, report=types
        )
    return FunctionTool(fn, name=name, description=description, report=types)


# --- the schema ----------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """JSON schema without the titles that pydantic makes of names: they only cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _arguments_model(
    fn: Callable[..., Any], plain: Callable[..., Any], name: str, described: Mapping[str, str]
) -> type[BaseModel]:
    """A model with one field per parameter; fields are numbered, so any name is allowed."""
    try:
        hints = typing.get_type_hints(plain, include_extras=True)
    except (NameError, TypeError) as error:
        raise ToolError(
            f"the annotations of {name!r} cannot be read: {error}; import the types that they "
            "name at the top of the file"
        ) from error
    fields: dict[str, Any] = {}
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    for number, parameter in enumerate(inspect.signature(fn).parameters.values()):
        if parameter.name in bound:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(
                f"the function {name!r} takes '{parameter}', which has no name to pass it by; "
                "give each argument of a tool a name of its own"
            )
        if parameter.name not in hints:
            raise ToolError(
                f"the argument {parameter.name!r} of {name!r} has no type; annotate it, for "
                f"example '{parameter.name}: str'"
            )
        options: dict[str, Any] = {"alias": parameter.name}
        if parameter.name in described:
            options["description"] = " ".join(described[parameter.name].split())
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"field_{number}"] = (hints[parameter.name], Field(default, **options))
    try:
        model: type[BaseModel] = create_model(
            name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
        )
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ToolError(
            f"a type among the arguments of {name!r} has no JSON form: "
            f"{str(error).splitlines()[0]}; use types that JSON can write, or a dataclass"
        ) from error
    return model


def _schema(arguments: type[BaseModel], name: str) -> dict[str, Any]:
    try:
        schema = arguments.model_json_schema(schema_generator=_Untitled)
    except PydanticUserError as error:
        raise ToolError(
            f"a type among the arguments of {name!r} has no JSON form: "
            f"{str(error).splitlines()[0]}; use types that JSON can write, or a dataclass"
        ) from error
    schema.pop("title", None)
    for definition in schema.get("$defs", {}).values():
        definition.pop("title", None)
    return schema


def _run(call: Coroutine[Any, Any, ToolResult]) -> ToolResult:
    """Wait for an asynchronous call, also where this thread runs an event loop already."""
    with ThreadPoolExecutor(1, "agent-r1-function") as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, call).result()


def _shown(value: Any) -> ToolResult:
    if isinstance(value, ToolResult):
        return value
    if value is None or isinstance(value, str):
        return ToolResult(value or "", True)
    try:
        return ToolResult(to_json(value).decode(), True)
    except (ValueError, TypeError) as error:
        raise ToolError(
            f"a tool returned a {type(value).__name__}, which has no JSON form ({error}); return "
            "a string, or values that JSON can write"
        ) from error


def _reported(error: Exception) -> ToolResult:
    return ToolResult(f"Error: {error or type(error).__name__}", False)
