"""All cases, and the loop that runs them."""

from __future__ import annotations

from collections.abc import Iterable

from agent_r1.sandbox.base import Executor
from agent_r1.sandbox.conformance import (
    between,
    escape,
    everyday,
    resources,
    semantics,
    sly,
    traces,
)
from agent_r1.sandbox.conformance.cases import EVERYTHING, Case, Feature, Outcome, Report


def cases(can: frozenset[Feature] = EVERYTHING) -> tuple[Case, ...]:
    """The cases that a side which ``can`` do so much is able to express."""
    modules = (semantics, everyday, escape, resources, sly, between, traces)
    every = (case for module in modules for case in module.CASES)
    return tuple(case for case in every if case.needs <= can)


def run_conformance(
    executor: Executor,
    *,
    can: frozenset[Feature] = EVERYTHING,
    only: Iterable[str] | None = None,
) -> Report:
    """Run every case (or those named in ``only``) against ``executor``."""
    wanted = None if only is None else set(only)
    report = Report()
    for case in cases():
        if wanted is not None and case.name not in wanted:
            continue
        missing = case.needs - can
        if missing:
            reason = f"this wire cannot express {', '.join(sorted(missing))}"
            report.results[case.name] = (Outcome.SKIPPED, reason)
            continue
        try:
            case.check(executor)
        except Exception as error:  # any failure of a case is a finding, not a crash
            report.results[case.name] = (Outcome.FAILED, f"{type(error).__name__}: {error}")
        else:
            report.results[case.name] = (Outcome.PASSED, "")
    return report
