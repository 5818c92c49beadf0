"""Measure a policy on held-out tasks, with intervals, and keep every trajectory.

An evaluation that is interrupted continues where it stopped: trajectories that its folder
holds already are not sampled again.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from agent_r1.config.changes import changes_since
from agent_r1.config.load import to_yaml
from agent_r1.config.schema import Config
from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor.jsonl import JsonlFile
from agent_r1.monitor.metrics import source_of, succeeded
from agent_r1.monitor.records import TRAJECTORIES_FILE, encode_trajectory, load_trajectories
from agent_r1.reward.answers import final_answer
from agent_r1.rollout.group import Group, GroupRunner, usable
from agent_r1.trainer import build
from agent_r1.trainer.environments import build_loop, make_scorer, open_environments
from agent_r1.trainer.estimates import Estimate, bootstrap, majority, pass_at_k
from agent_r1.trainer.interrupt import Interrupted, StopRequest
from agent_r1.trainer.policy import open_policy
from agent_r1.trainer.tasks import load_split
from agent_r1.trainer.validation import Validator
from agent_r1.types import Trajectory
from agent_r1.under_way import under_way


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What was measured on one data source."""

    source: str
    tasks: int
    samples: int
    """Samples per task."""
    failed: int
    """Trajectories that environment or engine failed; they are not counted."""
    estimates: dict[str, Estimate]
    """``avg@n``, ``pass@k``, ``maj@n`` and ``reward``, each with its interval."""
    tool_call_share: float
    tool_success_share: float | None
    """Of the calls, how many worked; None where nothing was called."""
    mean_turns: float
    mean_response_length: float


def evaluate(config: Config, out: Path | None = None) -> list[SourceReport]:
    """Sample ``data.val_files`` with ``rollout.val_kwargs`` and report by data source.

    ``out`` (default: ``eval/`` next to the model, ``eval/<model>/`` here for one on a server)
    receives ``trajectories.jsonl``, ``results.json``, ``table.md`` and ``config.yaml``.
    """
    with ExitStack() as stack:
        with under_way("opening the policy"):
            validator, runner, model = _prepare(config, stack)
        folder = out or _default_folder(config, model)
        store = _Store(folder, config)
        stack.callback(store.close)
        groups = validator.groups()
        missing = [m for m in _members(groups) if f"{m.group_id}/{m.first_index}" not in store.done]
        _sample(validator, missing, store, runner)
        reports = report(store.trajectories(groups))
    write_reports(reports, folder)
    return reports


def _prepare(config: Config, stack: ExitStack) -> tuple[Validator, asyncio.Runner, str]:
    envs = stack.enter_context(open_environments(config))
    policy = open_policy(config, [opened.env for opened in envs])
    seed = config.trainer.seed if config.data.seed is None else config.data.seed
    found = load_split(config, policy.codec, "val", seed, measured=policy.counts_tokens)
    tasks = tuple(task for members in found.values() for task in members)
    if not tasks:
        raise ConfigError("no environment has tasks to evaluate: name data.val_files in envs")
    runner = stack.enter_context(asyncio.Runner())
    engine = policy.build_engine()
    stack.callback(lambda: runner.run(engine.close()))
    groups = GroupRunner(
        build_loop(envs, engine, policy.codec),
        engine,
        make_scorer(envs),
        max_concurrency=policy.max_concurrency,
    )
    stack.callback(lambda: runner.run(groups.close()))
    sampling = build.train_sampling(config)
    return build.build_validator(config, tasks, groups, sampling), runner, policy.name


def _default_folder(config: Config, model: str) -> Path:
    if config.actor_rollout_ref.model.path:
        return Path(config.actor_rollout_ref.model.path) / "eval"
    return Path("eval") / re.sub(r"[^\w.-]+", "-", model)


def _members(groups: Sequence[Group]) -> list[Group]:
    """Every sample as a group of one, so that only what is missing need be sampled."""
    return [
        Group(group.task, group.group_id, n=1, first_index=index)
        for group in groups
        for index in range(group.n)
    ]


def _sample(
    validator: Validator, missing: Sequence[Group], store: _Store, runner: asyncio.Runner
) -> None:
    stop = StopRequest(_tell)
    with under_way("sampling", len(missing)) as progress, stop.installed():
        finished = 0

        def on_finished(trajectory: Trajectory) -> None:
            nonlocal finished
            store.add(trajectory)
            finished += 1
            progress(finished)

        if missing:
            try:
                stop.run(runner, validator.run(on_finished, groups=missing))
            except Interrupted:
                raise KeyboardInterrupt from None


def _tell(message: str) -> None:
    sys.stderr.write(f"{message}\n")  # above the bar, where there is one


class _Store:
    """The trajectories of an evaluation, on disk the moment they are there."""

    def __init__(self, folder: Path, config: Config) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            settings = folder / "config.yaml"
            if settings.exists() and (changed := changes_since(settings, config)):
                raise ConfigError(
                    f"{folder} holds an evaluation with other settings "
                    f"({', '.join(str(change) for change in changed[:5])}); choose another --out"
                )
            settings.write_text(to_yaml(config))
            self._path = folder / TRAJECTORIES_FILE
            self._file = JsonlFile(self._path)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error}; choose --out") from error
        self.done = {t.id for t in load_trajectories(self._path) if not t.outcome.failed}

    def add(self, trajectory: Trajectory) -> None:
        self._file.append([encode_trajectory(trajectory, step=0, split="val")])

    def trajectories(self, groups: Sequence[Group]) -> list[Trajectory]:
        """The newest record of each sample, in the order of the groups."""
        newest = {t.id: t for t in load_trajectories(self._path)}
        wanted = [f"{m.group_id}/{m.first_index}" for m in _members(groups)]
        return [newest[name] for name in wanted if name in newest]

    def close(self) -> None:
        self._file.close()


# --- the report --------------------------------------------------------------------------


def report(trajectories: Iterable[Trajectory]) -> list[SourceReport]:
    """One report per data source (of each environment), in order of appearance."""
    by_source: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_source[source_of(trajectory)].append(trajectory)
    return [_source_report(source, members) for source, members in by_source.items()]


def _source_report(source: str, members: Sequence[Trajectory]) -> SourceReport:
    good = usable(members)
    if not good:
        errors = {t.error for t in members}
        raise DataError(f"every trajectory of {source} failed: {sorted(map(str, errors))[:3]}")
    by_task: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in good:
        by_task[trajectory.group_id].append(trajectory)
    calls = [call for t in good for call in t.tool_calls]
    return SourceReport(
        source=source,
        tasks=len(by_task),
        samples=max(len(siblings) for siblings in by_task.values()),
        failed=len(members) - len(good),
        estimates=_estimates(list(by_task.values())),
        tool_call_share=sum(bool(t.tool_calls) for t in good) / len(good),
        tool_success_share=sum(c.success for c in calls) / len(calls) if calls else None,
        mean_turns=sum(len(t.turns) for t in good) / len(good),
        mean_response_length=sum(t.response_length for t in good) / len(good),
    )


def _estimates(tasks: Sequence[Sequence[Trajectory]]) -> dict[str, Estimate]:
    """avg@n, pass@k for the powers of two up to n, maj@n, and the mean reward."""
    n = min(len(siblings) for siblings in tasks)
    right = [[succeeded(t) for t in siblings] for siblings in tasks]
    found = {f"avg@{n}": bootstrap([sum(r) / len(r) for r in right])}
    k = 2
    while k <= n:
        found[f"pass@{k}"] = bootstrap([pass_at_k(len(r), sum(r), k) for r in right])
        k *= 2
    votes = [_majority_right(siblings) for siblings in tasks]
    if n > 1 and any(vote is not None for vote in votes):
        found[f"maj@{n}"] = bootstrap([float(bool(vote)) for vote in votes])
    rewards = [[t.reward.value for t in siblings if t.reward] for siblings in tasks]
    return found | {"reward": bootstrap([sum(r) / len(r) for r in rewards])}


def _majority_right(siblings: Sequence[Trajectory]) -> bool | None:
    """Whether the commonest answer is right; None where nobody gave one."""
    answers = [final_answer(t.final_text) for t in siblings]
    winner = majority(answers)
    if winner is None:
        return None
    return any(
        succeeded(t) for t, answer in zip(siblings, answers, strict=True) if answer == winner
    )


def write_reports(reports: Sequence[SourceReport], folder: Path) -> None:
    """``results.json`` for programs and ``table.md`` for people."""
    results = json.dumps([asdict(r) for r in reports], indent=2)
    (folder / "results.json").write_text(results + "\n")
    (folder / "table.md").write_text(markdown_table(reports))


def markdown_table(reports: Sequence[SourceReport]) -> str:
    """One row per source; every estimate with its 95 % interval."""
    names = list(dict.fromkeys(name for r in reports for name in r.estimates))
    head = ["source", "tasks", *names, "calls a tool", "calls that work", "turns", "tokens"]
    rows = [head, ["---"] * len(head)]
    for r in reports:
        cells = [_interval(r.estimates.get(name)) for name in names]
        works = "" if r.tool_success_share is None else f"{r.tool_success_share:.1%}"
        tail = [f"{r.tool_call_share:.1%}", works]
        tail += [f"{r.mean_turns:.2f}", f"{r.mean_response_length:.0f}"]
        rows.append([r.source, str(r.tasks), *cells, *tail])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
