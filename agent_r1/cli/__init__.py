"""The command ``agent-r1``: wiring between the command line and the packages, nothing else.

A command imports what it runs after its configuration has been read, so that help and
mistakes in a configuration come back at once.

Exit codes: 0 done, 1 something failed while running, 2 the command line or the
configuration is wrong, 3 a checkpoint could not be written or read, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from agent_r1 import __version__
from agent_r1.cli.base import (
    OrderedGroup,
    configured,
    from_run,
    from_server,
    in_environment,
    load,
    newest_checkpoint,
    policy_folder,
    say,
    under_way,
)
from agent_r1.cli.data import data
from agent_r1.cli.demands import (
    evaluation_needs,
    policy_needs,
    sft_needs,
    training_needs,
    unknown_in_chat,
    unknown_in_evaluation,
    unknown_in_sft,
    unknown_in_training,
)
from agent_r1.cli.doctor import doctor
from agent_r1.cli.env import env
from agent_r1.cli.model import convert, memory
from agent_r1.cli.serve import serve as serve_policy
from agent_r1.cli.view import export_trajectories, view
from agent_r1.errors import AgentR1Error, CheckpointError, ConfigError, RegistryError

if TYPE_CHECKING:
    from agent_r1.config.schema import Config
    from agent_r1.config.section import Section

DEBUG_VARIABLE = "AGENT_R1_DEBUG"


class Stopped(Exception):
    """The user interrupted a command; the message says how to go on."""


@click.group(
    cls=OrderedGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples="""
agent-r1 quickstart                     train a tiny agent with a real tool, here and now
agent-r1 train --config run.yaml        train; the same command resumes
agent-r1 eval --run runs/my/run         measure what it learned
agent-r1 view runs/my/run               read what it wrote, token by token
agent-r1 chat --run runs/my/run         talk to it, tools included
agent-r1 serve --run runs/my/run        let OpenAI clients ask it
""",
)
@click.version_option(__version__, prog_name="agent-r1")
def cli() -> None:
    """Reinforcement learning for language-model agents that use tools.

    Settings are written dotted.key=value after any command; "agent-r1 config" explains them.
    """


@cli.command()
@configured
def quickstart(file: Path | None, overrides: Sequence[str]) -> None:
    """Train a tiny agent with a real tool, here, in minutes."""
    with under_way("starting"):
        from agent_r1.recipes.quickstart import quickstart as run_quickstart

    run_quickstart(file, overrides)


@cli.command(
    examples=r"""
agent-r1 train --config run.yaml
agent-r1 train actor_rollout_ref.model.path=./model data.train_files=train.parquet \
    actor_rollout_ref.rollout.stop='["</code>"]' algorithm.adv_estimator=gae
agent-r1 train --config run.yaml --print-config trainer.seed=3
"""
)
@configured
@click.option("--print-config", is_flag=True, help="Print the resolved configuration and stop.")
def train(file: Path | None, overrides: Sequence[str], print_config: bool) -> None:
    """Train a policy by reinforcement learning.

    Running the same command again continues from the newest checkpoint.
    """
    from agent_r1.config import Config

    if print_config:
        return _print_config(load(Config, file, overrides))
    config = load(Config, file, overrides, needs=training_needs, look_up=unknown_in_training)
    from agent_r1.distributed.launch import launch, needs_launch
    from agent_r1.tracing import exported

    if needs_launch(config):
        return launch(config, ["train", *(["--config", str(file)] if file else []), *overrides])
    with exported("agent-r1 train"), _resumable(config.trainer.run_dir):
        with under_way("starting"):
            from agent_r1.distributed.run import train as run_train

        run_dir = run_train(config)
        if run_dir is not None:
            _finish(run_dir)


@cli.command(
    examples="""
agent-r1 sft model.path=./model data.train_files=traces.jsonl trainer.total_epochs=2
agent-r1 sft --config cold_start.yaml --print-config
"""
)
@configured
@click.option("--print-config", is_flag=True, help="Print the resolved configuration and stop.")
def sft(file: Path | None, overrides: Sequence[str], print_config: bool) -> None:
    """Cold start: teach a model from traces of tool use."""
    from agent_r1.config.sft import SftConfig

    if print_config:
        return _print_config(load(SftConfig, file, overrides))
    config = load(SftConfig, file, overrides, needs=sft_needs, look_up=unknown_in_sft, alone=True)
    with _resumable(config.trainer.run_dir):
        with under_way("starting"):
            from agent_r1.monitor.run import RunFolder
            from agent_r1.trainer.sft import run_sft, sft_changes

        with RunFolder.open(config, sft_changes(config)) as run:
            report = run_sft(config, run)
        _finish(run.path)
    click.echo(f"model     {report.policy}")


@cli.command(
    name="eval",
    examples="""
agent-r1 eval --run runs/retool/first actor_rollout_ref.rollout.val_kwargs.n=8
agent-r1 eval --checkpoint ./model data.val_files=aime.parquet
agent-r1 eval --server http://127.0.0.1:8000/v1 --model NAME data.val_files=aime.parquet
""",
)
@from_run
@from_server
@configured
@click.option("--out", type=click.Path(path_type=Path), help="Folder for table and trajectories.")
def evaluate(
    run: Path | None,
    checkpoint: Path | None,
    server: Sequence[str],
    file: Path | None,
    overrides: Sequence[str],
    out: Path | None,
) -> None:
    """Measure a policy on held-out tasks (data.val_files).

    With --server, prompts are rendered as in training if --run, --checkpoint or
    actor_rollout_ref.model.path gives the model's tokenizer.
    """
    settings = [*server, *overrides]
    config = _load_policy(
        run,
        checkpoint,
        file,
        settings,
        needs=evaluation_needs,
        look_up=unknown_in_evaluation,
        alone=True,
    )
    with under_way("starting"):
        from agent_r1.trainer.evaluate import evaluate as run_evaluate
        from agent_r1.trainer.evaluate import markdown_table

    click.echo(markdown_table(run_evaluate(config, out=out)), nl=False)


@cli.command(
    examples="""
agent-r1 chat --run runs/retool/first
agent-r1 chat --checkpoint ./model tool.env=retool -m 'What is 17 * 23?'
"""
)
@from_run
@from_server
@configured
@click.option("--message", "-m", help="Ask this question and exit.")
@in_environment
def chat(
    run: Path | None,
    checkpoint: Path | None,
    server: Sequence[str],
    file: Path | None,
    overrides: Sequence[str],
    message: str | None,
    env: str | None,
) -> None:
    """Talk to a policy in the environment of its training.

    If it was trained in several environments, the first is used unless --env names another.
    """
    checks = {"needs": policy_needs, "look_up": unknown_in_chat}
    config = _load_policy(run, checkpoint, file, [*server, *overrides], **checks)
    with under_way("starting"):
        from agent_r1.trainer.chat import chat as run_chat

    run_chat(config, message=message, env=env)


cli.add_command(serve_policy)
cli.add_command(data)
cli.add_command(env)
cli.add_command(convert)
cli.add_command(memory)
cli.add_command(doctor)
cli.add_command(view)
cli.add_command(export_trajectories)


@cli.command(
    examples="""
agent-r1 export --run runs/retool/first ./retool-model
agent-r1 export --checkpoint ./sharded-model --max-shard-size 5GB --dtype bfloat16 ./model
agent-r1 export --checkpoint checkpoints/global_step_100/actor ./merged-from-fsdp
"""
)
@from_run
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Convert the weights."
)
@click.option("--max-shard-size", help="Bound of each file, as 5GB. Otherwise one file.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Model folder with the configuration and tokenizer of a sharded checkpoint.",
)
def export(
    run: Path | None,
    checkpoint: Path | None,
    target: Path,
    dtype: str | None,
    max_shard_size: str | None,
    base: Path | None,
) -> None:
    """Write a policy to TARGET as a Hugging Face model.

    Model folders are copied, sharded ones merged; so are the rank files of FSDP
    (model_world_size_N_rank_R.pt) and folders of torch.distributed.checkpoint.
    """
    source = _export_source(run, checkpoint)
    with under_way(f"writing {target}"):
        from agent_r1.models.export import export_model

        export_model(source, target, dtype=dtype, max_shard_size=max_shard_size, base=base)
    click.echo(f"{source} → {target}")


@cli.command(
    examples="""
agent-r1 plot runs/my/run
agent-r1 plot runs/my/seed* --metrics rollout/success --metrics 'val-core/*' --out seeds.svg
agent-r1 plot runs/my/seed* --behaviour --out tools.png
"""
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metrics", multiple=True, help="A metric, * as in a shell; may be repeated.")
@click.option("--behaviour", is_flag=True, help="How tools are used, from the trajectories.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="One picture of all runs: .png, .svg or .pdf."
)
def plot(runs: Sequence[Path], metrics: Sequence[str], behaviour: bool, out: Path | None) -> None:
    """Draw the curves of each of RUNS into its curve.png, or metrics of all into one picture.

    With --metrics or --behaviour, runs that differ in seeds and names alone share a line and a
    band from the smallest to the largest value.
    """
    if behaviour:
        with under_way("starting"):
            from agent_r1.monitor.behaviour import plot_behaviour

        if metrics:
            raise click.UsageError("--metrics and --behaviour exclude each other")
        target = out or Path("behaviour.png")
        with under_way(f"drawing {target}"):
            drawn = plot_behaviour(runs, target)
        return click.echo(f"{', '.join(drawn)} of {len(runs)} runs → {target}")
    if metrics:
        with under_way("starting"):
            from agent_r1.monitor.compare import plot_metrics

        target = out or Path("metrics.png")
        with under_way(f"drawing {target}"):
            drawn = plot_metrics(runs, metrics, target)
        return click.echo(f"{', '.join(drawn)} of {len(runs)} runs → {target}")
    if out is not None:
        raise click.UsageError(
            "--out goes with --metrics or --behaviour; curve.png stays in the run's folder"
        )
    with under_way("starting"):
        from agent_r1.monitor.plot import plot_curve

    for run in runs:
        with under_way(f"drawing the curve of {run}"):
            curve = plot_curve(run)
        click.echo(str(curve))


@cli.group()
def sandbox() -> None:
    """Run programs in isolation."""


@sandbox.command(
    examples="""
agent-r1 sandbox serve
agent-r1 sandbox serve --port 9000 sandbox.workers=16
"""
)
@configured
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="0 takes a free one.")
@click.option("--allow-anonymous", is_flag=True, help="Serve other machines without a token.")
def serve(
    file: Path | None, overrides: Sequence[str], host: str, port: int, allow_anonymous: bool
) -> None:
    """Serve the sandbox over HTTP, in the protocol of SandboxFusion.

    A bearer token is taken from the environment variable AGENT_R1_SANDBOX_TOKEN
    (sandbox.token_env).
    """
    from agent_r1.config import Config

    config = load(Config, file, overrides).sandbox
    if config.executor != "embedded":
        raise ConfigError(
            f"a service runs programs itself; drop sandbox.executor={config.executor}"
        )
    from agent_r1.sandbox.embedded import EmbeddedExecutor
    from agent_r1.sandbox.serve import serve as run_serve
    from agent_r1.sandbox.service import ServicePolicy

    policy = ServicePolicy(token=os.environ.get(config.token_env))
    with closing(EmbeddedExecutor(workers=config.workers, isolation=config.isolation)) as executor:
        run_serve(
            executor,
            host,
            port,
            policy=policy,
            allow_anonymous=allow_anonymous,
            ready=lambda url: click.echo(f"serving {url} (Ctrl-C to stop)", err=True),
        )


@cli.command(
    name="config",
    examples="""
agent-r1 config
agent-r1 config actor_rollout_ref.rollout
agent-r1 config algorithm.adv_estimator
agent-r1 config metrics
agent-r1 config metrics actor
""",
)
@click.argument("key", required=False)
@click.argument("metric", required=False)
def explain(key: str | None, metric: str | None) -> None:
    """Explain a setting, a section, or all of them; or, after "metrics", what is logged."""
    from agent_r1.config.docs import explain as lines_about

    if key == "metrics":
        from agent_r1.monitor.names import explain as metrics_about

        lines: Iterable[str] = metrics_about(metric)
    elif metric is not None:
        raise click.UsageError(f"one setting at a time: leave {metric} out")
    else:
        lines = lines_about(key)
    for line in lines:
        click.echo(line)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    # Set before torch is imported. Threads of OpenMP that spin while they wait take the cores
    # from the sandbox and the tools; on a busy machine that was seen to cost tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv or bool(os.environ.get(DEBUG_VARIABLE))
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort, Stopped) as stop:
        say(str(stop) or "Interrupted.", colour="yellow")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as 'head', has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except AgentR1Error as error:
        if debug:
            raise
        say(f"Error: {error}", colour="red")
        if isinstance(error, CheckpointError):
            sys.exit(3)
        sys.exit(2 if isinstance(error, ConfigError | RegistryError) else 1)
    sys.exit(0)


def _load_policy(
    run: Path | None,
    checkpoint: Path | None,
    file: Path | None,
    overrides: Sequence[str],
    **checks: Any,
) -> Config:
    """A configuration whose model is the policy of a run or checkpoint, if one is given."""
    from agent_r1.config import Config

    policy = policy_folder(run, checkpoint)
    chosen = [f"actor_rollout_ref.model.path={policy}"] if policy else []
    base = run / "config.yaml" if run is not None else None
    return load(Config, file, [*chosen, *overrides], base=base, **checks)


def _export_source(run: Path | None, checkpoint: Path | None) -> Path:
    """Like :func:`policy_folder`, but a checkpoint may be of another program."""
    if checkpoint is None and run is not None:
        checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise ConfigError("nothing to export; give --run FOLDER or --checkpoint FOLDER")
    inside = (checkpoint / name for name in ("policy", "actor", "shards"))
    return next((folder for folder in inside if folder.is_dir()), checkpoint)


@contextmanager
def _resumable(run_dir: Path) -> Iterator[None]:
    """Turn an interruption into a message that says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(
            f"Interrupted. What is finished is in {run_dir}; the same command continues there."
        ) from stop


def _finish(run_dir: Path) -> None:
    """Say where things are."""
    from agent_r1.errors import DataError
    from agent_r1.monitor.plot import plot_curve
    from agent_r1.monitor.records import trajectories_file

    try:
        with under_way("drawing the curve"):
            curve: Path | None = plot_curve(run_dir)
    except (DataError, OSError):  # nothing to draw, or no room for it
        curve = None
    click.echo(f"run       {run_dir}")
    if curve is not None:
        click.echo(f"curve     {curve}")
    name = shlex.quote(str(run_dir))
    trajectories = trajectories_file(run_dir)
    if trajectories.is_file() and trajectories.stat().st_size:
        click.echo(f"look      agent-r1 view {name}")
    if next(run_dir.glob("checkpoints/step-*/policy"), None) is not None:
        click.echo(f"next      agent-r1 chat --run {name}")


def _print_config(config: Section) -> None:
    from agent_r1.config import to_yaml

    click.echo(to_yaml(config), nl=False)
