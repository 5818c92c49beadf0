"""``agent-r1 serve``: a policy behind an OpenAI-compatible address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from agent_r1.cli.base import (
    ExampleCommand,
    configured,
    from_run,
    load,
    policy_folder,
    say,
    under_way,
)

TOKEN_VARIABLE = "AGENT_R1_SERVE_TOKEN"


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 serve --run runs/retool/first
agent-r1 serve --checkpoint ./model --port 9000 trainer.device=cpu
""",
)
@from_run
@configured
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--max-concurrency",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Concurrent requests; further ones are refused (429).",
)
def serve(
    run: Path | None,
    checkpoint: Path | None,
    file: Path | None,
    overrides: Sequence[str],
    host: str,
    port: int,
    max_concurrency: int,
) -> None:
    """Serve a policy to OpenAI clients: chat with tools and streams, and completions.

    The key that clients must send is taken from the environment variable
    AGENT_R1_SERVE_TOKEN. Without it only this machine may ask.
    """
    from agent_r1.config import Config

    policy = policy_folder(run, checkpoint)
    chosen = [f"actor_rollout_ref.model.path={policy}"] if policy else []
    base = run / "config.yaml" if run is not None else None
    needs = {"actor_rollout_ref__model__path": "./my-model (or give --run)"}
    config = load(Config, file, [*chosen, *overrides], base=base, needs=lambda _: needs)
    with under_way("starting"):
        from agent_r1.trainer.serve import serve as run_serve

    run_serve(
        config,
        host=host,
        port=port,
        token=os.environ.get(TOKEN_VARIABLE),
        max_concurrency=max_concurrency,
        ready=lambda url: say(f"serving {url} (Ctrl-C to stop)", colour="green"),
    )
