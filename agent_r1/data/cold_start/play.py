"""Drafts of episodes, played in the very environment of training.

A draft holds only what a model would write. The observations of the trace that comes of it
are what the environment answered, so a cold start never teaches an output that the tool
would not give.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.reward.answers import final_answer, math_equal
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Message

Prompt = tuple[Message, ...] | str
AsPrompt = Callable[[str], Prompt]
"""The prompt for a question; the same one that the tasks of later training have."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One episode without the tool's part.

    ``number`` is the row it came from, for the report. ``turns`` are the model's, in order;
    each but the last calls the tool.
    """

    number: int
    question: str
    answer: str
    turns: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that became no trace, and why."""

    number: int
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"row {self.number}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(slots=True)
class Played:
    """Traces in the order of their rows, and the rows that gave none."""

    traces: list[Trace] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    calls: int = 0
    failed_calls: int = 0
    """Calls in the kept traces that ended in an error, from which the solver recovered."""

    def reasons(self) -> dict[str, int]:
        """How many rows were rejected for each reason, the commonest first."""
        return dict(Counter(each.reason for each in self.rejected).most_common())


async def play(
    drafts: Iterable[Draft | Rejected],
    env: BaseToolEnv,
    as_prompt: AsPrompt,
    *,
    concurrency: int = 16,
    on_finished: Callable[[], None] = lambda: None,
) -> Played:
    """Let the environment answer every draft; keep those that end right.

    Kept are drafts whose calls are recognised as calls, whose last call works and whose last
    turn calls nothing and states the reference answer. Order is that of ``drafts``.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(item: Draft | Rejected) -> tuple[Draft | Rejected, _Episode | Rejected]:
        if isinstance(item, Rejected):
            return item, item
        async with gate:
            played = await _play_one(item, env)
        on_finished()
        return item, played

    result = Played()
    for draft, outcome in await asyncio.gather(*(one(item) for item in drafts)):
        if isinstance(outcome, Rejected):
            result.rejected.append(outcome)
        else:
            assert isinstance(draft, Draft)
            trace = Trace(as_prompt(draft.question), outcome.segments, draft.source)
            result.traces.append(trace)
            result.calls += len(outcome.successes)
            result.failed_calls += outcome.successes.count(False)
    return result


@dataclass(frozen=True, slots=True)
class _Episode:
    segments: tuple[Segment, ...]
    successes: tuple[bool, ...]


async def _play_one(draft: Draft, env: BaseToolEnv) -> _Episode | Rejected:
    segments: list[Segment] = []
    successes: list[bool] = []
    for text in draft.turns[:-1]:
        observation, success, active = await env.astep(text)
        if not active or not success:
            return Rejected(draft.number, "a turn calls no tool", text[:80])
        segments += [Segment(Author.MODEL, text), Segment(Author.TOOL, observation)]
        successes += success
    if successes and not successes[-1]:
        return Rejected(draft.number, "the last call fails", segments[-1].text.strip()[-200:])
    last = draft.turns[-1]
    if env.extract_tool_calls(last):
        return Rejected(draft.number, "the last turn calls a tool", last[:80])
    answer = final_answer(last)
    if answer is None or not math_equal(answer, draft.answer):
        return Rejected(draft.number, "the answer is not the reference", draft.answer[:80])
    return _Episode((*segments, Segment(Author.MODEL, last)), tuple(successes))
