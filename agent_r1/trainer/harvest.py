"""Rejection sampling: right trajectories of a policy become traces to learn from.

A policy that solves a problem now and then can be taught by its own successes, without
anybody's annotations (Zelikman et al., "STaR", arXiv 2203.14465; Yuan et al., "Scaling
Relationship on Learning Mathematical Reasoning", arXiv 2308.01825, which takes several
distinct solutions per problem). The trajectories come from an evaluation on training tasks,
or from a training run, whose files have the same format.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from agent_r1.data.traces import Trace, trace_of
from agent_r1.monitor.metrics import succeeded
from agent_r1.types import Outcome, Trajectory


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the right trajectories are worth learning from."""

    per_task: int = 1
    """Distinct traces per task at most: easy tasks would crowd out the others."""
    require_tool: bool = True
    """Only those that called a tool."""
    allow_failed_calls: bool = True
    """Also those in which a call failed before the last one worked."""
    env: str | None = None
    """Only those of this environment of a run with several."""


@dataclass(frozen=True, slots=True)
class Harvest:
    """The traces, and what became of all trajectories, by reason."""

    traces: tuple[Trace, ...]
    tasks: int
    counts: dict[str, int]


def harvest(trajectories: Iterable[Trajectory], choice: Choice) -> Harvest:
    """Keep right, distinct trajectories, the first ``per_task`` of each task in their order."""
    counts: Counter[str] = Counter()
    texts: dict[str, set[str]] = defaultdict(set)
    tasks: set[str] = set()
    traces: list[Trace] = []
    for trajectory in trajectories:
        if choice.env is not None and trajectory.task.env != choice.env:
            counts["of another environment"] += 1
            continue
        key = trajectory.task.id
        tasks.add(key)
        reason = _objection(trajectory, choice) or _repetition(trajectory, texts[key], choice)
        counts[reason or "kept"] += 1
        if reason is None:
            texts[key].add(trajectory.transcript)
            traces.append(trace_of(trajectory))
    return Harvest(tuple(traces), len(tasks), dict(counts.most_common()))


def _objection(trajectory: Trajectory, choice: Choice) -> str | None:
    if trajectory.outcome is not Outcome.FINISHED:
        return f"ended by {trajectory.outcome.value}"
    if not succeeded(trajectory):
        return "not right"
    calls = trajectory.tool_calls
    if choice.require_tool and not calls:
        return "called no tool"
    if calls and not calls[-1].success:
        return "its last call failed"
    if not choice.allow_failed_calls and not all(call.success for call in calls):
        return "a call failed"
    return None


def _repetition(trajectory: Trajectory, texts: set[str], choice: Choice) -> str | None:
    if trajectory.transcript in texts:
        return "the same as another"
    return "more than enough of its task" if len(texts) >= choice.per_task else None
