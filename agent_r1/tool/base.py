"""What a user extends: a tool, and the environment that a model uses it through.

For a language model that only writes, the Markov decision process is trivial: the next state is
the text plus one token. If a model may call tools, part of what it writes is an *action*, and the
tool's output becomes part of the next state. :class:`BaseToolEnv` is that state transition: it
takes the text of one turn and returns an observation. It is independent of tokens, models, rewards
and training.

:class:`BaseTool` is a tool: a name, a JSON schema and a function.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, SupportsIndex

from agent_r1.errors import EnvironmentContractError, ToolArgumentError, ToolError
from agent_r1.tool.threads import to_daemon_thread

if TYPE_CHECKING:
    from agent_r1.types import Task

StepResult = tuple[str, list[bool], bool]
"""``(observation, success of each call, active)``: see :meth:`BaseToolEnv.step`."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """On whose behalf a tool is being called.

    The agent loop sets it before each step, so that a tool can seed a program, name a
    session or respect a deadline although ``execute`` takes the model's arguments only.
    """

    trajectory_id: str
    turn: int
    """0 for the first turn of the trajectory."""
    seed: int | None = None
    """Fixed by the run's seed, the task, the sibling and the turn; ``None`` for a fresh one."""
    deadline: float | None = None
    """``time.monotonic()`` at which the step is given up; ``None`` for never."""


call_context: ContextVar[CallContext | None] = ContextVar("call_context", default=None)
"""The current call's :class:`CallContext`; ``None`` outside of a rollout.

It travels into the thread that runs ``step``. A tool that starts threads of its own hands
it on with ``contextvars.copy_context().run``.
"""


class ToolResult(NamedTuple):
    """What a tool call gave: text for the model, and whether the call did what was asked.

    It unpacks into two, and also answers ``result["content"]`` and ``result["success"]``,
    because existing tools do either.
    """

    content: str
    success: bool = True

    def __getitem__(self, key: SupportsIndex | slice | str) -> Any:
        if isinstance(key, str):
            if key not in self._fields:
                raise KeyError(f"{key!r}: a tool result has 'content' and 'success'")
            return getattr(self, key)
        return tuple.__getitem__(self, key)


def normalise_tool_result(raw: object, tool_name: str = "tool") -> ToolResult:
    """Turn what a user's tool returned into a :class:`ToolResult`.

    Accepted: a ``ToolResult``; a mapping with ``content`` and optionally ``success``; a
    pair ``(content, success)``; a plain string, which counts as success.

    Raises:
        ToolError: anything else, because guessing would show a ``repr`` to the model.
    """
    match raw:
        case ToolResult(content=str(), success=bool()):
            return raw
        case str():
            return ToolResult(raw, True)
        case Mapping() if isinstance(raw.get("content"), str) and isinstance(
            raw.get("success", True), bool
        ):
            return ToolResult(raw["content"], raw.get("success", True))
        case (str() as content, bool() as success):
            return ToolResult(content, success)
    raise ToolError(
        f"tool {tool_name!r} returned {_brief(raw)}; return ToolResult(content: str, success: "
        "bool), or a dict or pair of these two"
    )


class BaseTool(ABC):
    """Something that a model can call.

    A subclass names itself with three class attributes (or sets them in ``__init__``) and
    implements :meth:`execute`::

        class Add(BaseTool):
            name = "add"
            description = "Add two numbers."
            parameters = {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            }

            def execute(self, args):
                return ToolResult(str(args["a"] + args["b"]), True)

    A subclass's ``execute`` is wrapped when the class is made: arguments are validated
    against ``parameters`` before it runs, and what it returns is normalised
    (:func:`normalise_tool_result`). So the body sees valid arguments only, and callers
    always receive a ``ToolResult``.

    The cause decides how a call fails:

    * the model (arguments that do not match, a program with a bug, a search without
      hits): return ``ToolResult(message, False)`` or raise ``ToolArgumentError``. The
      message is shown to the model, which may learn from it.
    * anything else (a service is down, a bug in the tool): raise. Derive from
      :class:`agent_r1.errors.ToolError` where you can. The trajectory is excluded from
      training and counted, and a run in which this persists stops.

    One instance serves many trajectories at once, each in a thread of its own:
    ``execute`` must be thread-safe. State of one trajectory is kept under
    ``call_context.get().trajectory_id``, or in an environment made per trajectory.
    """

    name: str = ""
    description: str = ""
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}}
    """JSON schema (2020-12) of the arguments; always of type ``object``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(cls.__dict__.get("parameters"), Mapping):
            _check_schema(cls.__dict__["parameters"], cls.__qualname__)
        if "execute" in cls.__dict__:
            cls.execute = _checked(cls.__dict__["execute"])  # type: ignore[method-assign]
        if "aexecute" in cls.__dict__:
            cls.aexecute = _achecked(cls.__dict__["aexecute"])  # type: ignore[method-assign]

    @abstractmethod
    def execute(self, args: Mapping[str, Any]) -> ToolResult:
        """Run one call. Blocks; may be called from many threads at once."""

    async def aexecute(self, args: Mapping[str, Any]) -> ToolResult:
        """Run one call without blocking the event loop.

        The default runs :meth:`execute` in a thread. Override it where the tool waits for
        a network or a sandbox that has an asynchronous client.
        """
        return await to_daemon_thread(self.execute, args)

    def batch_execute(self, args_list: Sequence[Mapping[str, Any]]) -> list[ToolResult]:
        """Run several independent calls at once; results in the order of the arguments."""
        if len(args_list) < 2:
            return [self.execute(args) for args in args_list]
        with ThreadPoolExecutor(min(len(args_list), 64), "agent-r1-tool") as pool:
            futures = [
                pool.submit(contextvars.copy_context().run, self.execute, args)
                for args in args_list
            ]
            return [future.result() for future in futures]

    def validate_args(self, args: object) -> None:
        """Check arguments against ``parameters``.

        Raises:
            ToolArgumentError: says which argument is wrong and how, for the model to read.
            ToolError: ``parameters`` itself is no valid schema.
        """
        errors = sorted(_validator(self).iter_errors(args), key=lambda e: e.json_path)
        if errors:
            where = "".join(f"{e.json_path.removeprefix('$.')}: {e.message}; " for e in errors[:3])
            raise ToolArgumentError(
                f"invalid arguments for tool {self.name!r}: {where.replace('$: ', '')[:-2]}"
            )

    @property
    def tool_description(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI-compatible servers want it described."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }

    @property
    def keeps_state(self) -> bool:
        """Whether the tool keeps something per trajectory that :meth:`end_trajectory` ends."""
        return False

    def end_trajectory(self, trajectory_id: str) -> None:  # noqa: B027  # optional
        """Forget what was kept for this trajectory. Unknown ids are ignored."""

    def close(self) -> None:  # noqa: B027  # optional: most tools hold nothing
        """Release what the tool holds. Called once at the end of a run; idempotent."""


class BaseToolEnv(ABC):
    """The state transition of an agent's decision process.

    A subclass implements :meth:`step`. The methods that ``step`` is usually made of have
    names of their own, so that a variant overrides one idea and not the whole:

    ========================== ==================================================
    ``stop_strings``           when a round of generation ends (the usual way)
    ``process_responses_ids``  the same, for patterns that no stop string can say
    ``extract_tool_calls``     what the model asks for
    ``format_tool_response``   how the answer reads to the model
    ``stop``                   whether the episode is over
    ``step``                   all of them in order: the transition itself
    ========================== ==================================================

    The agent loop calls :meth:`for_trajectory` once per trajectory, then :meth:`astep`
    once per turn (never twice at a time for one trajectory), then :meth:`close` on the
    environment that ``for_trajectory`` gave unless that is the shared one, which is closed
    at the end of the run.

    An environment is *shared* (``for_trajectory`` returns ``self``; ``step`` must be
    thread-safe, as it runs for many trajectories at once) or *made per trajectory*
    (``for_trajectory`` returns a fresh object, which may keep any state it likes).
    """

    stop_strings: ClassVar[tuple[str, ...]] = ()
    """Strings that end a round of generation, such as ``("</code>",)``.

    The configuration may add to them (``actor_rollout_ref.rollout.stop``). A stop string
    may end in the middle of a token: the whole sampled token stays in the trajectory, and
    ``step`` sees the text cut right after the stop string.
    """

    control_tokens: ClassVar[bool] = False
    """Whether the observation may contain the tokenizer's control tokens as such.

    False: text that spells ``<|im_end|>`` is encoded as plain characters, because tools
    are untrusted. An environment that writes chat markup of its own sets it and must then
    neutralise control tokens in the tool's part.
    """

    @abstractmethod
    def step(self, raw_response: str) -> StepResult:
        """Take the text of one turn to the next state.

        Args:
            raw_response: what the model wrote in this turn and nothing else: no prompt, no
                earlier turn, no tool output. It ends with the stop string if one was
                written, and just ends if the model finished or its budget ran out.

        Returns:
            A tuple of three:

            * ``observation``: text appended to the context exactly as it is, before the
              model writes its next turn. It is tokenised once, on its own, and masked
              from the loss. May be empty. After the final turn (``active`` false, or the
              turn or token limit reached) it is *not* appended: no action follows it.
            * ``success``: one bool per tool call of this turn, in order; ``[]`` when
              nothing was called. It is logged and may feed process rewards; it decides
              nothing about the episode.
            * ``active``: whether the episode goes on. False means that the model is done,
              by answering or by writing nothing that calls for a transition.

        Raises:
            Exception: whatever makes the transition impossible *through no fault of the
                model*. The trajectory ends as ``Outcome.TOOL_ERROR``, is excluded from
                training and baselines, and is counted; a run in which it persists stops.
                What the model did wrong (malformed calls, failing programs) is never an
                exception: it is an observation with ``success`` false.
        """

    async def astep(self, raw_response: str) -> StepResult:
        """The transition as the agent loop calls it.

        The default runs :meth:`step` in a thread, context variables included. Override it
        when the tools are asynchronous; it must agree with :meth:`step`. It is cancelled
        when the trajectory's deadline passes (a thread cannot be: it is abandoned).
        """
        return await to_daemon_thread(self.step, raw_response)

    def batch_step(
        self, raw_responses: Sequence[str]
    ) -> tuple[list[str], list[list[bool]], list[bool]]:
        """Transitions of several independent trajectories: three lists, in order.

        For scripts and evaluation. Training does not use it, because a batch waits for
        its slowest member; there every trajectory steps at its own pace.
        """
        results = [self.step(raw) for raw in raw_responses]
        return (
            [observation for observation, _, _ in results],
            [success for _, success, _ in results],
            [active for _, _, active in results],
        )

    def stop(self, raw_response: str) -> bool:
        """Whether the episode is over after this text: by default, when it calls nothing."""
        return len(self.extract_tool_calls(raw_response)) == 0

    def extract_tool_calls(self, raw_response: str) -> list[Any]:
        """Parameters of the tool calls that the text asks for; ``[]`` for none.

        A helper of ``step`` in whatever form ``step`` likes; the loop does not call it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no extract_tool_calls; define it, or override stop()"
        )

    def format_tool_response(self, tool_responses: list[str]) -> str:
        """The observation made of the tools' answers. A helper of ``step``."""
        return "\n".join(tool_responses)

    def process_responses_ids(
        self, tokenizer: Any, raw_responses_ids: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[int]]:
        """Cut sampled token ids where a tool call is triggered.

        Only for triggers that ``stop_strings`` cannot express: the engine has sampled on,
        and each row is cut back to the prefix that ends with the trigger. Rows are given
        one list per response, without padding, and come back in the same order, each a
        **prefix** of what came in: ids can be cut off, never changed, because they are
        the record of what the policy did. The default cuts nothing.
        """
        return raw_responses_ids

    def for_trajectory(self, task: Task) -> BaseToolEnv:
        """The environment that one trajectory of ``task`` lives in.

        Default: ``self``, shared and stateless. An environment with state (a game board,
        a shell, counters) returns a fresh object here, cheap to make.
        """
        return self

    def close(self) -> None:  # noqa: B027  # optional: most environments hold nothing
        """Release what the environment holds. Idempotent."""

    @property
    def system_prompt(self) -> str:
        """Words that tell the model how to use the environment; they open its system message,
        or its prompt where that is no chat. Empty: none.
        """
        return ""

    @property
    def announced_tools(self) -> Sequence[Mapping[str, Any]]:
        """Functions that the model is told of before its first turn, as ``tool_description``
        gives them: through the chat template where it writes tools, else in words. The default
        announces none, for environments whose prompts say how they are used.
        """
        return ()


def validate_step_result(env: BaseToolEnv, result: object) -> StepResult:
    """Hold an environment to its word; a numpy bool or a tuple of bools is let pass.

    Raises:
        EnvironmentContractError: names the environment, what came and what is expected.
    """
    match result:
        case (str() as observation, list() | tuple() as success, active):
            flags = [_as_bool(flag) for flag in success]
            going = _as_bool(active)
            if going is not None and None not in flags:
                return observation, [bool(flag) for flag in flags], going
    raise EnvironmentContractError(
        f"{type(env).__name__}.step returned {_brief(result)}; it must return (observation: str, "
        "success: list[bool], active: bool), for example ('', [], False) when the model is done"
    )


def has_trigger(env: BaseToolEnv) -> bool:
    """Whether the environment cuts sampled ids itself, beyond its stop strings."""
    return type(env).process_responses_ids is not BaseToolEnv.process_responses_ids


def trigger_length(env: BaseToolEnv, tokenizer: Any, token_ids: Sequence[int]) -> int:
    """How many of the sampled ids belong to the turn, by ``env.process_responses_ids``.

    Raises:
        EnvironmentContractError: the method returned something that is not a prefix.
    """
    if not has_trigger(env):
        return len(token_ids)
    rows = env.process_responses_ids(tokenizer, [list(token_ids)])
    kept = list(rows[0]) if len(rows) == 1 else None
    if kept is None or kept != list(token_ids[: len(kept)]):
        raise EnvironmentContractError(
            f"{type(env).__name__}.process_responses_ids must return each row as a prefix of what "
            f"it was given: {len(rows)} rows came back for 1, or ids were changed"
        )
    return len(kept)


def _as_bool(value: object) -> bool | None:
    """``value`` as a bool if it is one in meaning (numpy's too), else ``None``."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    return None


def _brief(value: object) -> str:
    text = repr(value)
    shown = text if len(text) <= 120 else text[:117] + "..."
    return f"{shown} (a {type(value).__name__})"


def _check_schema(schema: Mapping[str, Any], owner: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise ToolError(
            f"{owner}.parameters is no valid JSON schema at {error.json_path}: {error.message}"
        ) from error
    if schema.get("type") != "object":
        raise ToolError(
            f"{owner}.parameters must describe an object: add 'type': 'object' and list the "
            "arguments under 'properties'"
        )


def _validator(tool: BaseTool) -> Any:
    """The tool's compiled schema, checked and made once per tool and schema object."""
    cached: tuple[object, Any] | None = tool.__dict__.get("_schema_validator")
    if cached is None or cached[0] is not tool.parameters:
        from jsonschema import Draft202012Validator

        _check_schema(tool.parameters, type(tool).__qualname__)
        cached = (tool.parameters, Draft202012Validator(dict(tool.parameters)))
        tool.__dict__["_schema_validator"] = cached
    return cached[1]


Execute = Callable[..., ToolResult]
AsyncExecute = Callable[..., Coroutine[Any, Any, ToolResult]]


def _checked(execute: Execute) -> Execute:
    """Wrap a subclass's ``execute``: validate, run, normalise."""

    @functools.wraps(execute)
    def call(self: BaseTool, args: Mapping[str, Any], **kwargs: Any) -> ToolResult:
        try:
            self.validate_args(args)
            return normalise_tool_result(execute(self, args, **kwargs), self.name)
        except ToolArgumentError as error:
            return ToolResult(f"Error: {error}", False)

    return call


def _achecked(execute: AsyncExecute) -> AsyncExecute:
    """Wrap a subclass's ``aexecute`` in the same way."""
    if not inspect.iscoroutinefunction(execute):
        raise ToolError("aexecute must be an 'async def'")

    @functools.wraps(execute)
    async def call(self: BaseTool, args: Mapping[str, Any], **kwargs: Any) -> ToolResult:
        try:
            self.validate_args(args)
            return normalise_tool_result(await execute(self, args, **kwargs), self.name)
        except ToolArgumentError as error:
            return ToolResult(f"Error: {error}", False)

    return call
