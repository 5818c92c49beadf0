"""Every conformance case against the embedded executor, one property per test."""

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from agent_r1.sandbox import EmbeddedExecutor
from agent_r1.sandbox.base import RunRequest, RunResult, RunStatus
from agent_r1.sandbox.conformance import SANDBOX_FUSION, Case, Outcome, cases, run_conformance
from agent_r1.sandbox.serve import serving


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


def test_the_suite_runs_from_the_command_line() -> None:
    from agent_r1.sandbox.conformance.__main__ import main

    done = CliRunner().invoke(main, ["--only", "print", "--only", "mount"])
    assert (done.exit_code, done.output) == (0, "2 passed, 0 failed, 0 skipped\n")
    wrong = CliRunner().invoke(main, ["--only", "nonsense"])
    assert wrong.exit_code == 2 and "no such case: nonsense" in wrong.output


def test_it_can_be_pointed_at_any_server(executor: EmbeddedExecutor) -> None:
    from agent_r1.sandbox.conformance.__main__ import main

    with serving(executor) as url:
        only = ["--only", "print", "--only", "seeded"]
        whole = CliRunner().invoke(main, [url, *only])
        assert (whole.exit_code, whole.output) == (0, "2 passed, 0 failed, 0 skipped\n")
        partial = CliRunner().invoke(main, [url, "--sandbox-fusion", *only])
        assert partial.exit_code == 0 and "1 passed, 0 failed, 1 skipped" in partial.output
        failing = CliRunner().invoke(main, [f"{url}/elsewhere", "--only", "print"])
        assert failing.exit_code == 1 and "failed: print" in failing.output
