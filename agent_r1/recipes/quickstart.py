"""The quick start: a tiny model learns to use a real tool, on two cores, in minutes.

Three stages, each resumable and each an ordinary command of the project with the settings
that lie beside this file: build a random model, fine-tune it on tool calls of which most are
wrong (cold start), and train it by reinforcement learning. What counts is how
often held-out problems are solved before and after the last stage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from agent_r1.config.load import load_config, load_section
from agent_r1.config.schema import Config
from agent_r1.config.sft import SftConfig
from agent_r1.errors import ConfigError
from agent_r1.types import Trajectory

RL_SETTINGS = Path(__file__).with_name("quickstart.yaml")
COLD_START_SETTINGS = Path(__file__).with_name("quickstart_cold_start.yaml")
REPORT_FILE = "report.json"

_THREADS = 1
"""The model's matrices are so small that a second thread gains little, and costs a factor of
twenty where another process wants its core. The other cores run the sandbox's programs."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where the stages of one quick start keep their files."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def cold_start(self) -> Path:
        return self.root / "cold-start"

    @property
    def rl(self) -> Path:
        return self.root / "rl"


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy on the held-out problems, sampled at temperature 1."""

    success: float
    direct: float
    """Success when it has to answer at once, without a tool."""
    tool_call_share: float
    calls_that_work: float | None
    """``None`` where nothing was called."""
    response_tokens: float
    families: dict[str, float]
    problems: int


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out problem, as the model went about it before and after."""

    before: Trajectory
    after: Trajectory


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a quick start. ``seconds`` is by stage, of this call only."""

    algorithm: str
    seed: int
    before: Policy
    after: Policy
    parameters: int
    cold_start_steps: int
    traces: int
    """Shown in the cold start."""
    rl_steps: int
    trajectories: int
    seconds: dict[str, float] = field(default_factory=dict)


def quickstart(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    cold_start_overrides: Sequence[str] = (),
) -> Report:
    """Run all stages and print the report; the same call continues what was interrupted.

    ``overrides`` concern reinforcement learning (``algorithm.adv_estimator=gae``); the
    seed, the device and the loggers hold for every stage. Raises
    :class:`agent_r1.errors.AgentR1Error` with a remedy, and ``KeyboardInterrupt`` after a
    stop request, when everything that is finished has been saved.
    """
    config, folders = _configure(file or RL_SETTINGS, overrides)
    cold = _configure_cold_start(config, folders, cold_start_overrides)
    try:
        return _run(config, cold, folders)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"Interrupted. What is finished is in {folders.root}; the same command continues there."
        ) from stop


def _run(config: Config, cold: SftConfig, folders: Folders) -> Report:
    """The stages in order, each with its heading."""
    from agent_r1.recipes import quickstart_report as page

    page.show_title(config)
    clock: dict[str, float] = {}
    with _timed(clock, "model"):
        _build_model(config, folders)
    page.show_model(folders.model, clock["model"])
    page.show_stage(2, "Cold start", "learning the format from traces, most of them wrong")
    with _timed(clock, "cold start"):
        _cold_start(cold)
    page.show_stage(3, "Reinforcement learning", f"{config.algorithm.adv_estimator}, real tool")
    with _timed(clock, "reinforcement learning"):
        _reinforce(config)
    with _timed(clock, "measuring"):
        report, example = _measure(config, cold, folders, clock)
    (folders.root / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n")
    page.show_report(report, example, folders)
    return report


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clock[stage] = time.perf_counter() - started


def _configure(file: Path, overrides: Sequence[str]) -> tuple[Config, Folders]:
    """The configuration with every stage's folder inside the run folder."""
    config = load_config(file, overrides)
    if config.actor_rollout_ref.model.path:
        raise ConfigError(
            "the quick start builds its own model; to train another one use "
            f"'agent-r1 train --config {file} actor_rollout_ref.model.path=...'"
        )
    trainer = config.trainer
    if trainer.experiment_name == "default":
        name = f"{config.algorithm.adv_estimator}-seed{trainer.seed}"
        trainer = trainer.model_copy(update={"experiment_name": name})
    folders = Folders(trainer.run_dir)
    settings = [
        *overrides,
        f"trainer.num_threads={trainer.num_threads or _THREADS}",
        f"trainer.experiment_name={trainer.experiment_name}",
        f"trainer.default_local_dir={folders.rl}",
        "trainer.val_before_train=true",
        f"actor_rollout_ref.model.path={folders.cold_start / 'policy'}",
    ]
    return load_config(file, settings), folders


def _configure_cold_start(config: Config, folders: Folders, overrides: Sequence[str]) -> SftConfig:
    trainer = config.trainer
    shared = {
        "model.path": folders.model,
        "trainer.default_local_dir": folders.cold_start,
        "trainer.project_name": trainer.project_name,
        "trainer.experiment_name": f"{trainer.experiment_name}-cold-start",
        "trainer.logger": list(trainer.logger),
        "trainer.seed": trainer.seed,
        "trainer.device": trainer.device,
        "trainer.num_threads": trainer.num_threads,
        "trainer.resume_mode": "disable" if trainer.resume_mode == "disable" else "auto",
    }
    settings = [f"{key}={value}" for key, value in shared.items()]
    return load_section(SftConfig, COLD_START_SETTINGS, [*settings, *overrides])


def _build_model(config: Config, folders: Folders) -> None:
    from agent_r1.recipes.tiny import build_tiny_model

    fresh = config.trainer.resume_mode == "disable"
    if fresh or not (folders.model / "config.json").is_file():
        build_tiny_model(folders.model, seed=config.trainer.seed)


def _cold_start(config: SftConfig) -> None:
    from agent_r1.monitor.run import RunFolder
    from agent_r1.trainer.sft import run_sft

    with RunFolder.open(config) as run:
        run_sft(config, run)


def _reinforce(config: Config) -> None:
    from agent_r1.errors import DataError
    from agent_r1.monitor.plot import plot_curve
    from agent_r1.trainer.build import train

    run_dir = train(config)
    try:
        plot_curve(run_dir)
    except (DataError, OSError):  # the picture is not worth the run
        return


def _measure(
    config: Config, cold: SftConfig, folders: Folders, clock: dict[str, float]
) -> tuple[Report, Example | None]:
    """Both policies on the held-out problems, from what the run has stored."""
    from agent_r1.models.load import load_model
    from agent_r1.recipes.direct import direct_success

    last, before, after = validations(folders.rl)
    tasks = [trajectory.task for trajectory in before]
    cold_policy = folders.cold_start / "policy"
    steps = cold.trainer.total_training_steps or 0
    report = Report(
        algorithm=config.algorithm.adv_estimator,
        seed=config.trainer.seed,
        before=_policy(before, direct_success(config, cold_policy, tasks)),
        after=_policy(after, direct_success(config, final_policy(folders.rl, last), tasks)),
        parameters=sum(p.numel() for p in load_model(cold_policy).parameters()),
        cold_start_steps=steps,
        traces=steps * cold.data.train_batch_size,
        rl_steps=last,
        trajectories=last * config.data.train_batch_size * config.actor_rollout_ref.rollout.n,
        seconds=clock,
    )
    return report, telling_example(before, after)


def final_policy(run_dir: Path, step: int) -> Path:
    """The model folder of a run's last checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:06d}" / "policy"


def validations(run_dir: Path) -> tuple[int, list[Trajectory], list[Trajectory]]:
    """The last validated step, and the trajectories of the first and the last validation."""
    from agent_r1.monitor.records import read_stored

    by_step: dict[int, list[Trajectory]] = {}
    for stored in read_stored(run_dir):
        if stored.split == "val":
            by_step.setdefault(stored.step, []).append(stored.trajectory)
    return max(by_step), by_step[min(by_step)], by_step[max(by_step)]


def _policy(trajectories: Sequence[Trajectory], direct: float) -> Policy:
    families: dict[str, list[float]] = {}
    for trajectory in trajectories:
        family = families.setdefault(trajectory.task.extra["family"], [])
        family.append(trajectory.reward.value if trajectory.reward else 0.0)
    calls = [call.success for trajectory in trajectories for call in trajectory.tool_calls]
    return Policy(
        success=fmean(value for values in families.values() for value in values),
        direct=direct,
        tool_call_share=fmean(bool(t.tool_calls) for t in trajectories),
        calls_that_work=fmean(calls) if calls else None,
        response_tokens=fmean(t.response_length for t in trajectories),
        families={name: fmean(values) for name, values in sorted(families.items())},
        problems=len(trajectories),
    )


def telling_example(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> Example | None:
    """A problem that was guessed at before and is solved with the tool after."""
    solved = {t.task.id: t for t in after if t.tool_calls and t.reward and t.reward.value > 0}
    failed = [t for t in before if t.reward and t.reward.value == 0 and t.task.id in solved]
    failed.sort(key=lambda t: len(t.tool_calls))
    return Example(failed[0], solved[failed[0].task.id]) if failed else None
