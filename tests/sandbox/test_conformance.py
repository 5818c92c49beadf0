"""Every conformance case against the embedded executor, one property per test."""

from collections.abc import Iterator

import pytest

from agent_r1.sandbox import EmbeddedExecutor
from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus
from agent_r1.sandbox.conformance import SANDBOX_FUSION, Case, Outcome, cases, run_conformance


@pytest.fixture(scope="module")
def executor() -> Iterator[EmbeddedExecutor]:
    with EmbeddedExecutor() as executor:
        yield executor


@pytest.mark.parametrize("case", cases(), ids=str)
def test_embedded(case: Case, executor: EmbeddedExecutor) -> None:
    case.check(executor)


def test_names_are_unique() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))


def test_at_least_sixty_hostile_programs() -> None:
    assert sum(case.hostile for case in cases()) >= 60


class ConstantExecutor:
    """Claims the same end for every program, as a broken sandbox might."""

    def __init__(self, stdout: str) -> None:
        self.result = RunResult(status=RunStatus.SUCCESS, stdout=stdout, exit_code=0)

    def run(self, request: RunRequest) -> RunResult:
        return self.result

    async def arun(self, request: RunRequest) -> RunResult:
        return self.result

    def close_session(self, session: str) -> None:
        return

    def close(self) -> None:
        return


@pytest.mark.parametrize("stdout", ["", "breach\n", "alive\n"])
def test_the_suite_finds_a_sandbox_that_only_claims(stdout: str) -> None:
    report = run_conformance(ConstantExecutor(stdout))
    passed = [name for name, (kind, _) in report.results.items() if kind is Outcome.PASSED]
    assert len(report.failures) >= 0.9 * len(report.results), passed


def test_what_a_wire_cannot_express_is_skipped_with_the_reason() -> None:
    report = run_conformance(ConstantExecutor(""), can=SANDBOX_FUSION, only=["seeded", "print"])
    assert report.results["seeded"] == (Outcome.SKIPPED, "this wire cannot express seeds")
    assert report.results["print"][0] is Outcome.FAILED
