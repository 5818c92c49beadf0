"""The conformance suite through the HTTP door: with our client, and with the PyPI package."""

import asyncio

import pytest
import sandbox_fusion

from agent_r1.errors import SandboxUnavailable
from agent_r1.sandbox import EmbeddedExecutor, RunRequest, RunResult, wire
from agent_r1.sandbox.client import SandboxClient
from agent_r1.sandbox.conformance import SANDBOX_FUSION, cases
from agent_r1.sandbox.serve import serving


def marked(case):
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


class PackageExecutor:
    """The PyPI package ``sandbox-fusion`` as an executor."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, request: RunRequest) -> RunResult:
        body = wire.from_request(request)
        known = sandbox_fusion.RunCodeRequest(
            code=body.code,
            language=body.language,
            stdin=body.stdin,
            files=body.files,
            fetch_files=body.fetch_files,
            run_timeout=body.run_timeout,
            compile_timeout=body.compile_timeout,
        )
        answer = sandbox_fusion.run_code(known, endpoint=self.url, max_attempts=2)
        return wire.to_result(answer.json().encode())[0]

    async def arun(self, request: RunRequest) -> RunResult:
        return await asyncio.to_thread(self.run, request)

    def close_session(self, session: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def url():
    with EmbeddedExecutor() as executor:
        try:
            executor.run(RunRequest(code="pass"))
        except SandboxUnavailable as reason:
            pytest.skip(str(reason))
        with serving(executor) as url:
            yield url


@pytest.fixture(scope="module")
def ours(url):
    with SandboxClient(url) as client:
        yield client


@pytest.mark.parametrize("case", [marked(case) for case in cases()])
def test_our_client(case, ours):
    case.check(ours)


@pytest.mark.slow
@pytest.mark.parametrize("case", [marked(case) for case in cases(SANDBOX_FUSION)])
def test_the_pypi_package(case, url):
    case.check(PackageExecutor(url))
