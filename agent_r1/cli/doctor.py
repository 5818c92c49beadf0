"""``agent-r1 doctor``: whether a machine or a cluster is fit for a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent_r1.cli.base import ExampleCommand, configured, load, under_way

if TYPE_CHECKING:
    from agent_r1.config.schema import Config
    from agent_r1.distributed.facts import Question
    from agent_r1.distributed.verdict import Observed, Wanted


@click.command(
    cls=ExampleCommand,
    examples="""
agent-r1 doctor
agent-r1 doctor --config run.yaml --json
agent-r1 doctor ray.address=auto trainer.nnodes=4 trainer.n_gpus_per_node=8 --shared /mnt/runs
""",
)
@configured
@click.option(
    "--shared",
    multiple=True,
    metavar="FOLDER",
    help="A folder that every node must write and see; may be repeated. The run folder always is.",
)
@click.option("--port", "ports", multiple=True, type=int, help="A port that must be free.")
@click.option("--json", "as_json", is_flag=True, help="Print facts and findings as JSON.")
def doctor(
    file: Path | None,
    overrides: Sequence[str],
    shared: Sequence[str],
    ports: Sequence[int],
    as_json: bool,
) -> None:
    """Check whether this machine, or a Ray cluster, is fit for a run.

    Checks GPUs and the links between them, versions, memory, folders, the sandbox's
    isolation, the tokenizer, clocks and the network: here, or with ray.address on every node.
    Exit code 1 if something would keep the run from working.
    """
    from agent_r1.config import Config

    config = load(Config, file, overrides)
    with under_way("starting"):
        from agent_r1.distributed.doctor import table
        from agent_r1.distributed.verdict import judge

    observed = _observe(config, _question(config, shared, ports))
    findings = judge(observed, _wanted(config))
    failed = sum(finding.state == "fail" for finding in findings)
    if as_json:
        told = {
            "fit": not failed,
            "nodes": [dataclasses.asdict(facts) for facts in observed.facts],
            "clocks": observed.clocks,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(table(findings))
        click.echo(f"\n{failed} of {len(findings)} checks failed" if failed else "\nfit")
    if failed:
        raise SystemExit(1)


def _question(config: Config, shared: Sequence[str], ports: Sequence[int]) -> Question:
    from agent_r1.distributed.facts import Question

    run = config.trainer.run_dir.absolute()
    parent = next(folder for folder in (run, *run.parents) if folder.is_dir())
    folders = dict.fromkeys([str(parent), *(str(Path(f).absolute()) for f in shared)])
    return Question(
        model=config.actor_rollout_ref.model.path,
        trust_remote_code=config.actor_rollout_ref.model.trust_remote_code,
        folders=tuple(folders),
        ports=tuple(ports),
        sandbox=_runs_programs(config),
    )


def _wanted(config: Config) -> Wanted:
    from agent_r1.distributed.verdict import Wanted

    trainer = config.trainer
    needs_cards = trainer.device == "cuda" or trainer.n_gpus_per_node > 1
    return Wanted(
        nodes=trainer.nnodes,
        cards=trainer.n_gpus_per_node if needs_cards and trainer.device != "cpu" else None,
        isolation=config.sandbox.isolation if _runs_programs(config) else None,
    )


def _runs_programs(config: Config) -> bool:
    return config.sandbox.executor in ("embedded", "ray")


def _observe(config: Config, question: Question) -> Observed:
    from agent_r1.distributed.doctor import observe_cluster, observe_here

    if config.ray.address is None:
        with under_way("looking at this machine"):
            return observe_here(question)
    from agent_r1.distributed.cluster import joined

    with joined(config.ray.address) as nodes, under_way("looking at every node"):
        return observe_cluster(question, nodes)
