"""``python -m agent_r1.sandbox.conformance URL``: the suite against any server, or none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from agent_r1.sandbox.base import Executor


@click.command()
@click.argument("url", required=False)
@click.option("--sandbox-fusion", is_flag=True, help="The server speaks that protocol only.")
@click.option("--token", envvar="AGENT_R1_SANDBOX_TOKEN", help="Bearer token of the server.")
@click.option("--only", multiple=True, metavar="NAME", help="Run this case; may be repeated.")
def main(url: str | None, sandbox_fusion: bool, token: str | None, only: tuple[str, ...]) -> None:
    """Run the conformance suite against the server at URL; without one, in this process.

    Prints the cases that did not pass, and why; the exit code is 1 if any failed.
    """
    from agent_r1.sandbox.conformance import EVERYTHING, SANDBOX_FUSION, cases, run_conformance

    unknown = set(only) - {case.name for case in cases()}
    if unknown:
        raise click.UsageError(f"no such case: {', '.join(sorted(unknown))}")
    executor = _executor(url, token)
    try:
        can = SANDBOX_FUSION if sandbox_fusion else EVERYTHING
        report = run_conformance(executor, can=can, only=only or None)
    finally:
        executor.close()
    click.echo(report.text())
    sys.exit(1 if report.failures else 0)


def _executor(url: str | None, token: str | None) -> Executor:
    if url is None:
        from agent_r1.sandbox.embedded import EmbeddedExecutor

        return EmbeddedExecutor()
    from agent_r1.sandbox.client import SandboxClient

    return SandboxClient(url, token=token)


if __name__ == "__main__":
    main()
