"""The training loop: from prompts to a better policy, and back.

One step, in the order of the code below::

    tasks -> groups of trajectories (rollout/)            stored before any tensor exists
          -> Batch -> log-probabilities, values (worker)
          -> credit: KL, outcome policies, advantages (algorithms/)
          -> critic update, policy update (worker)
          -> the engine serves the new weights

The loop is synchronous and on-policy: trajectories of a step are sampled by the weights
that the step updates. Nothing in it knows of devices, processes or files; what does is
behind ``PolicyWorker``, ``Engine`` and ``RunFolder``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from agent_r1.config.schema import Config
from agent_r1.data.batch import Batch
from agent_r1.data.loader import TaskLoader
from agent_r1.monitor.metrics import rollout_metrics
from agent_r1.monitor.run import RunFolder
from agent_r1.rollout.agent_loop import Sampling
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.group import Group, GroupRunner, require_usable, usable
from agent_r1.trainer.checkpoint import CheckpointStore, load_state
from agent_r1.trainer.clock import Clock
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.interrupt import Interrupted, StopRequest
from agent_r1.trainer.validation import Validator, validation_metrics
from agent_r1.trainer.worker import PolicyWorker
from agent_r1.types import Task, Trajectory


@dataclass(frozen=True, slots=True)
class Parts:
    """What a trainer is made of; ``trainer/build.py`` makes them from a configuration."""

    worker: PolicyWorker
    engine: Engine
    groups: GroupRunner
    sampling: Sampling
    loader: TaskLoader
    validator: Validator
    credit: CreditAssigner
    run: RunFolder
    checkpoints: CheckpointStore
    pad_id: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """The trajectories of one step."""

    everything: list[Trajectory]
    chosen: list[Trajectory]
    """Those to train on."""
    greedy_rewards: dict[str, float] | None


class RLTrainer:
    """Trains until ``total_steps``, saving and validating on the way.

    A stop request (Ctrl-C, SIGTERM) ends the run after a checkpoint of the last finished
    step. Resuming repeats the interrupted step with the very same draws.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._stop = StopRequest(parts.run.announce)
        self.step = 0
        self._unlogged: dict[str, float] | None = None
        self.total_steps = config.trainer.total_training_steps or (
            config.trainer.total_epochs * parts.loader.batches_per_epoch
        )

    def fit(self, resume_from: Path | None = None) -> None:
        """Run to the end. ``KeyboardInterrupt`` after a stop request, everything saved."""
        with asyncio.Runner() as self._runner, self._stop.installed():
            try:
                self._begin(resume_from)
                while self.step < self.total_steps and not self._stop.requested:
                    self._train_step()
            except Interrupted:
                pass
            finally:
                self._runner.run(self._parts.engine.close())
            if self._stop.requested and self.step < self.total_steps:
                self._save()
                raise KeyboardInterrupt

    def _begin(self, resume_from: Path | None) -> None:
        if resume_from is not None:
            self._load(resume_from)
        elif self._config.trainer.val_before_train:
            self._unlogged = {}
        self._parts.run.expect(self.total_steps)
        self._publish_weights()
        self._finish_step()

    def _train_step(self) -> None:
        clock = Clock()
        position = self._parts.loader.state_dict()
        try:
            with clock("gen"):
                sample = self._sample(self.step + 1)
        except BaseException:
            self._parts.loader.load_state_dict(position)
            raise
        metrics = rollout_metrics(sample.everything) | self._learn(sample, clock)
        self.step += 1
        with clock("update_weights"):
            self._publish_weights()
        self._unlogged = metrics | _throughput(sample, clock)
        self._finish_step()
        if self._is_due(self._config.trainer.save_freq):
            self._save()

    def _finish_step(self) -> None:
        """Validate if it is time to, and log. An interrupted validation is owed: see _save."""
        if self._unlogged is None:
            return
        if self._is_due(self._config.trainer.test_freq):
            self._unlogged |= self._validate()
        if self._unlogged:
            self._parts.run.log(self._unlogged, step=self.step)
        self._unlogged = None

    def _is_due(self, frequency: int) -> bool:
        """Every ``frequency`` steps, and where the run begins and ends."""
        regular = frequency > 0 and self.step % frequency == 0
        return regular or self.step in (0, self.total_steps)

    # --- sampling -----------------------------------------------------------------

    def _sample(self, step: int) -> _Sample:
        """Trajectories for one step.

        With dynamic sampling (DAPO, section 3.2) groups that teach nothing are replaced by
        those of further prompts; after the last attempt what there is must do.
        """
        wanted = self._config.data.train_batch_size
        everything: list[Trajectory] = []
        kept: list[Trajectory] = []
        groups: list[Group] = []
        for attempt in range(self._parts.credit.max_sampling_rounds):
            fresh = self._groups(next(self._parts.loader), f"{step}.{attempt}")
            trajectories = self._run_groups(fresh, step)
            groups += fresh
            everything += trajectories
            kept += self._parts.credit.informative(
                require_usable(
                    trajectories, self._config.actor_rollout_ref.rollout.max_failed_share
                )
            )
            if len({t.group_id for t in kept}) >= wanted:
                break
        chosen = set(list(dict.fromkeys(t.group_id for t in kept or usable(everything)))[:wanted])
        return _Sample(
            everything,
            [t for t in kept or usable(everything) if t.group_id in chosen],
            self._greedy_rewards([g for g in groups if g.group_id in chosen]),
        )

    def _groups(self, tasks: Sequence[Task], label: str) -> list[Group]:
        n = self._config.actor_rollout_ref.rollout.n
        return [Group(task, f"{label}.{i}:{task.id}", n) for i, task in enumerate(tasks)]

    def _run_groups(self, groups: list[Group], step: int) -> list[Trajectory]:
        """Sample, and hand every finished trajectory to the run folder come what may."""
        finished: list[Trajectory] = []
        progress = self._parts.run.progress("rollout", sum(group.n for group in groups))

        def on_finished(trajectory: Trajectory) -> None:
            finished.append(trajectory)
            progress(len(finished))

        ordered: list[Trajectory] | None = None
        try:
            ordered = self._stop.run(
                self._runner,
                self._parts.groups.run(groups, self._parts.sampling, on_finished),
            )
            return ordered
        finally:
            self._parts.run.store(ordered if ordered is not None else finished, step=step)

    def _greedy_rewards(self, groups: Sequence[Group]) -> dict[str, float] | None:
        """Reward of each task's greedy trajectory, for the estimator that compares with it."""
        if not self._parts.credit.needs_greedy:
            return None
        alone = [replace(group, n=1, group_id=f"{group.group_id}~greedy") for group in groups]
        sampling = replace(self._parts.sampling, temperature=0.0)
        run = self._parts.groups.run(alone, sampling)
        scored = require_usable(
            self._stop.run(self._runner, run),
            self._config.actor_rollout_ref.rollout.max_failed_share,
        )
        return {t.group_id.removesuffix("~greedy"): t.reward.value for t in scored if t.reward}

    # --- learning -----------------------------------------------------------------

    def _learn(self, sample: _Sample, clock: Clock) -> dict[str, float]:
        """One update of critic and policy on the trajectories of a step."""
        worker, credit = self._parts.worker, self._parts.credit
        batch = Batch.from_trajectories(sample.chosen, self._parts.pad_id)
        recomputed = ref = values = None
        if credit.needs_logprobs:
            with clock("old_log_prob"):
                recomputed = worker.logprobs(batch)
        if credit.needs_ref or self._config.actor_rollout_ref.actor.use_kl_loss:
            with clock("ref"):
                ref = worker.ref_logprobs(batch)
        if credit.needs_values:
            with clock("values"):
                values = worker.values(batch)
        with clock("adv"):
            worth = credit.assign(
                batch, sample.chosen, recomputed, ref, values, sample.greedy_rewards
            )
        metrics = dict(worth.metrics)
        if values is not None and worth.returns is not None:
            with clock("update_critic"):
                metrics |= worker.update_critic(worth.batch, worth.returns, values.tokens)
        if self.step >= self._config.trainer.critic_warmup:
            with clock("update_actor"):
                metrics |= worker.update_policy(
                    worth.batch, worth.old_logprobs, worth.advantages, ref, worth.weights
                )
        return metrics

    def _publish_weights(self) -> None:
        engine = self._parts.engine
        self._runner.run(engine.load_weights(self._parts.worker.policy, self.step))

    # --- validation, checkpoints --------------------------------------------------

    def _validate(self) -> dict[str, float]:
        validator = self._parts.validator
        if not validator.size:
            return {}
        finished: list[Trajectory] = []
        progress = self._parts.run.progress("validation", validator.size)

        def on_finished(trajectory: Trajectory) -> None:
            finished.append(trajectory)
            progress(len(finished))

        trajectories = self._stop.run(self._runner, validator.run(on_finished))
        self._parts.run.store_validation(trajectories, step=self.step)
        return validation_metrics(trajectories)

    def _save(self) -> None:
        """Everything that the next step depends on, and what is still to be logged of this one."""
        parts = self._parts
        state = {
            "step": self.step,
            "unlogged": self._unlogged,
            "worker": parts.worker.state_dict(),
            "loader": parts.loader.state_dict(),
            "credit": parts.credit.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        parts.checkpoints.save(self.step, state, parts.worker.export)

    def _load(self, path: Path) -> None:
        """Continue after the step of a checkpoint; later lines of the run's files go."""
        parts = self._parts
        state = load_state(path)
        self.step = int(state["step"])
        self._unlogged = state["unlogged"]
        parts.worker.load_state_dict(state["worker"])
        parts.loader.load_state_dict(state["loader"])
        parts.credit.load_state_dict(state["credit"])
        torch.set_rng_state(state["torch_rng"])
        parts.run.rewind(self.step)


def _throughput(sample: _Sample, clock: Clock) -> dict[str, float]:
    """Tokens of the step's trajectories, tool tokens included, per second of the whole step."""
    tokens = sum(len(s.token_ids) for t in sample.everything for s in t.samples())
    timing = clock.metrics()
    return timing | {
        "perf/total_num_tokens": tokens,
        "perf/throughput": tokens / timing["timing_s/step"],
        "perf/time_per_step": timing["timing_s/step"],
    }
