"""What exactly a cold start learns of a trace, and whether its outputs are still true."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from agent_r1.data.traces import Author, Segment, Trace
from agent_r1.rollout.codec import Codec
from agent_r1.tool.base import BaseToolEnv
from agent_r1.trainer.sft_data import encode_trace


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens that are all learned, or all context."""

    learned: bool
    text: str
    tokens: int


def stretches(trace: Trace, codec: Codec) -> list[Stretch]:
    """A trace as training sees it: decoded from the very ids, cut where the mask changes."""
    example = encode_trace(trace, codec)
    found = []
    pairs = zip(example.loss_mask, example.token_ids, strict=True)
    for learned, group in groupby(pairs, key=lambda pair: pair[0]):
        ids = [token for _, token in group]
        found.append(Stretch(learned, codec.decode(ids), len(ids)))
    return found


@dataclass(slots=True)
class Rerun:
    """Traces after their calls were executed again, and what became of each."""

    traces: list[Trace] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


async def rerun(
    traces: Iterable[Trace],
    make_env: Callable[[], BaseToolEnv],
    *,
    stale: Literal["correct", "drop"] = "correct",
    on_finished: Callable[[], None] = lambda: None,
) -> Rerun:
    """Execute the calls of every trace again, in order, and compare the outputs.

    ``unchanged`` traces stay as they are. Of those with another output, ``corrected`` ones get
    the present output, unless a call that worked now fails or the other way round: what the model
    wrote afterwards would not follow, so they are ``dropped: a call changed its success``, as is
    every changed one with ``stale="drop"``. A turn that the environment does not take for a call
    is ``dropped: a turn calls no tool``. Conversations that a chat template writes are kept
    unseen and counted as ``not executed``.
    """
    result = Rerun()
    for trace in traces:
        if trace.chat:
            result.traces.append(trace)
            result.counts["not executed: written by the chat template"] += 1
            continue
        verdict, new = await _rerun_one(trace, make_env())
        if verdict == "corrected" and stale == "drop":
            verdict, new = "dropped: an output changed", None
        result.counts[verdict] += 1
        if new is not None:
            result.traces.append(new)
        on_finished()
    return result


async def _rerun_one(trace: Trace, env: BaseToolEnv) -> tuple[str, Trace | None]:
    segments: list[Segment] = []
    changed = False
    for before, old in zip(trace.segments, trace.segments[1:], strict=False):
        if old.author is not Author.TOOL:
            continue
        new, success, active = await env.astep(before.text)
        if not active or not success:
            return "dropped: a turn calls no tool", None
        if all(success) == _failed(old.text):
            return "dropped: a call changed its success", None
        differs = new.strip() != old.text.strip()
        changed |= differs
        segments += [before, Segment(Author.TOOL, new) if differs else old]
    if not changed:
        return "unchanged", trace
    segments += _tail(trace.segments)
    return "corrected", replace(trace, segments=tuple(segments))


def _tail(segments: Sequence[Segment]) -> list[Segment]:
    """What follows the last observation."""
    last = max(i for i, segment in enumerate(segments) if segment.author is Author.TOOL)
    return list(segments[last + 1 :])


def _failed(output: str) -> bool:
    """The output of a program that raised."""
    return "Traceback (most recent call last)" in output or "Error: " in output


def run_again(
    traces: Iterable[Trace],
    env: BaseToolEnv,
    *,
    stale: Literal["correct", "drop"],
    on_finished: Callable[[], None],
) -> Rerun:
    """:func:`rerun` for callers without an event loop, in one shared environment."""
    return asyncio.run(rerun(traces, lambda: env, stale=stale, on_finished=on_finished))
