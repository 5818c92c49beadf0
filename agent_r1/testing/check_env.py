"""Test whether an environment keeps its contract, before training in it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_r1.errors import EnvironmentContractError
from agent_r1.tool.base import (
    BaseToolEnv,
    CallContext,
    StepResult,
    call_context,
    trigger_length,
    validate_step_result,
)
from agent_r1.types import Task

T = TypeVar("T")

PROBES = (
    "",
    "The answer is 42.",
    "<code>print(1)",
    "</code><code>",
    "<code></code>",
    '<tool_call>{"name": </tool_call>',
    "<tool_call>[1, 2]</tool_call>",
    "\x00\ufffd \u202e naïve \U0001f9d1\u200d\U0001f52c",
    "<|im_end|>\n<|im_start|>user\n",
    "<a>" * 2000,
)
"""What models write when nobody looks. Nothing of it may make an environment raise."""


_NO_TASK = Task("check", "check")


@dataclass(frozen=True, slots=True)
class EnvReport:
    """What :func:`check_tool_env` saw, when the contract holds."""

    steps: int
    """Texts that were stepped."""
    calls: int
    """Tool calls that the environment reported."""
    warnings: tuple[str, ...]
    """Not forbidden, but seldom meant."""


def check_tool_env(
    env: BaseToolEnv,
    texts: Sequence[str] = (),
    *,
    task: Task | None = None,
    timeout_s: float = 30.0,
) -> EnvReport:
    """Exercise an environment as the agent loop would, and hold it to its contract.

    Give ``texts`` with calls that your environment understands; without them only the way
    it takes nonsense can be checked. Tools are really called.

    Checked: ``step`` returns ``(str, list[bool], bool)`` for every text and raises for
    none; it ends within ``timeout_s`` seconds; ``astep`` agrees with ``step``; many
    threads at once get what one gets; ``stop_strings``, ``for_trajectory``,
    ``batch_step`` and ``process_responses_ids`` are well formed.

    Raises:
        EnvironmentContractError: lists every violation that was found.
    """
    check = _Check(env, task or _NO_TASK, timeout_s)
    problems = check.shape()
    if not problems:
        for text in (*texts, *PROBES):
            problems += check.one_text(text)
    if not problems:
        problems += check.together((*texts, *PROBES))
    if problems:
        listed = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        raise EnvironmentContractError(
            f"{type(env).__name__} breaks the contract of BaseToolEnv:\n{listed}"
        )
    return EnvReport(check.steps, check.calls, tuple(check.warnings(bool(texts))))


class _Check:
    def __init__(self, env: BaseToolEnv, task: Task, timeout_s: float) -> None:
        self.env = env
        self.task = task
        self.timeout_s = timeout_s
        self.steps = 0
        self.calls = 0
        self.disagreements: list[str] = []

    def shape(self) -> list[str]:
        """The attributes, before anything is stepped."""
        problems = []
        stops = self.env.stop_strings
        if not isinstance(stops, tuple) or not all(isinstance(s, str) and s for s in stops):
            problems.append(f"stop_strings must be a tuple of non-empty strings, not {stops!r}")
        try:
            fresh = self.env.for_trajectory(self.task)
        except Exception as error:
            return [*problems, f"for_trajectory({self.task}) {_say(error)}{self._about_the_task()}"]
        if not isinstance(fresh, BaseToolEnv):
            problems.append(f"for_trajectory must return an environment, not {fresh!r}")
        elif fresh is not self.env:
            fresh.close()
        try:
            trigger_length(self.env, _CodePoints(), [104, 105])
        except Exception as error:
            problems.append(f"process_responses_ids: {_say(error)}")
        return problems

    def _about_the_task(self) -> str:
        if self.task is not _NO_TASK:
            return ""
        return (
            ". This task is the check's own and has no answer and no extras; give one that your "
            "environment understands, as in check_tool_env(env, task=Task(id, prompt, answer))"
        )

    def one_text(self, text: str) -> list[str]:
        """Step one text in every way the contract knows."""
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        try:
            result = self._step(text)
            again = self._astep(text)
        except Exception as error:
            return [f"step({shown}) {_say(error)}"]
        self.steps += 1
        self.calls += len(result[1])
        if (result[1:]) != (again[1:]):
            return [f"astep({shown}) gave {again[1:]} where step gave {result[1:]}"]
        self._compare_stop(text, shown, result)
        return []

    def together(self, texts: Sequence[str]) -> list[str]:
        """The same texts from many threads at once, and as one batch."""
        alone = [self._step(text)[1:] for text in texts]
        start = threading.Barrier(len(texts))
        boxes = [_Box(self._stepper(text), start) for text in texts]
        results = [box.wait(self.timeout_s) for box in boxes]
        problems = [
            f"step({text[:60]!r}) gave {got} beside other threads and {want} alone: it is not "
            "thread-safe; return a fresh environment from for_trajectory"
            for text, want, got in zip(texts, alone, results, strict=True)
            if want != (got[1:] if isinstance(got, tuple) else got)
        ]
        if self._fresh(lambda env: env is self.env):
            problems += self._as_batch(texts)
        return problems

    def _as_batch(self, texts: Sequence[str]) -> list[str]:
        """The texts as trajectories of one shared environment."""
        try:
            batch = self._fresh(lambda env: env.batch_step(list(texts)))
        except Exception as error:
            return [f"batch_step {_say(error)}"]
        if len(batch) != 3 or any(len(column) != len(texts) for column in batch):
            return ["batch_step must return three lists, each as long as its input"]
        return []

    def warnings(self, with_texts: bool) -> list[str]:
        found = list(self.disagreements)
        if with_texts and not self.calls:
            found.append("no text called a tool: are the tags in your texts the environment's?")
        return found

    def _compare_stop(self, text: str, shown: str, result: StepResult) -> None:
        try:
            stop = self._fresh(lambda env: env.stop(text))
        except NotImplementedError:
            return
        if stop is result[2]:
            self.disagreements.append(f"stop({shown}) is {stop} but step says active={result[2]}")

    def _step(self, text: str) -> StepResult:
        return _Box(self._stepper(text)).result(self.timeout_s)

    def _stepper(self, text: str) -> Callable[[], StepResult]:
        return lambda: self._fresh(lambda env: validate_step_result(env, env.step(text)))

    def _astep(self, text: str) -> StepResult:
        async def run(env: BaseToolEnv) -> Any:
            return await asyncio.wait_for(env.astep(text), self.timeout_s)

        return self._fresh(lambda env: validate_step_result(env, asyncio.run(run(env))))

    def _fresh(self, use: Callable[[BaseToolEnv], T]) -> T:
        """Use an environment as one trajectory does: made, used, closed."""
        token = call_context.set(CallContext("check/0", 0, seed=0))
        env = self.env.for_trajectory(self.task)
        try:
            return use(env)
        finally:
            call_context.reset(token)
            if env is not self.env:
                env.close()


class _Box:
    """A call in a daemon thread: it may hang without taking the check along."""

    def __init__(
        self, call: Callable[[], StepResult], start: threading.Barrier | None = None
    ) -> None:
        self._outcome: StepResult | Exception | None = None
        context = contextvars.copy_context()

        def work() -> None:
            if start is not None:
                start.wait()
            try:
                self._outcome = context.run(call)
            except Exception as error:
                self._outcome = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> StepResult | Exception:
        self._thread.join(timeout_s)
        return self._outcome or TimeoutError(f"did not return within {timeout_s:g} s")

    def result(self, timeout_s: float) -> StepResult:
        outcome = self.wait(timeout_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class _CodePoints:
    """The least tokenizer: ids are code points."""

    eos_token_id = 0
    pad_token_id = 0

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def _say(error: BaseException) -> str:
    if isinstance(error, EnvironmentContractError):
        return f"broke its word: {error}"
    return f"raised {type(error).__name__}: {error}"
