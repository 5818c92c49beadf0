"""The training loop: from prompts to a better policy, and back.

One step, in the order of the code below::

    tasks -> groups of trajectories (sampler, queue)      stored before any tensor exists
          -> Batch -> log-probabilities, values, credit: KL, outcome policies, advantages
          -> critic update, policy update (learner)
          -> the engine serves the new weights (publisher)

With ``trainer.max_staleness`` 0 the parts take turns: trajectories of a step are sampled by
the weights that the step updates. Above 0 the sampler goes on while the learner computes in
a thread and while weights are published; what differs is which groups the queue admits and
hands out, nothing else. Nothing in the loop knows of devices, processes or files; what does
is behind ``PolicyWorker``, ``Engine`` and ``RunFolder``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from agent_r1.config.schema import Config
from agent_r1.data.loader import Loader
from agent_r1.monitor.metrics import rollout_metrics
from agent_r1.monitor.run import RunFolder
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.group import Group, GroupRunner, require_usable
from agent_r1.rollout.limits import Sampling
from agent_r1.tracing import span
from agent_r1.trainer.checkpoint import POLICY_FOLDER, CheckpointStore, load_state
from agent_r1.trainer.clock import Clock
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.curriculum import Curriculum
from agent_r1.trainer.interrupt import Interrupted, StopRequest
from agent_r1.trainer.learner import Learner
from agent_r1.trainer.policy_worker import PolicyWorker
from agent_r1.trainer.publisher import WeightPublisher
from agent_r1.trainer.queue import make_queue
from agent_r1.trainer.sampler import Sample, Sampler, SamplerSettings
from agent_r1.trainer.supply import TaskSupply
from agent_r1.trainer.teacher import Teacher
from agent_r1.trainer.threads import in_thread
from agent_r1.trainer.validation import Validator, validation_metrics
from agent_r1.types import Trajectory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a trainer is made of; ``trainer/build.py`` makes them from a configuration."""

    worker: PolicyWorker
    engine: Engine
    groups: GroupRunner
    sampling: Sampling
    loader: Loader
    validator: Validator
    credit: CreditAssigner
    run: RunFolder
    checkpoints: CheckpointStore
    pad_id: int
    teacher: Teacher | None = None


class RLTrainer:
    """Trains until ``total_steps``, saving and validating on the way.

    A stop request (Ctrl-C, SIGTERM) ends the run after a checkpoint of the last finished
    step. Resuming a run without overlap repeats the interrupted step with the very same
    draws; with overlap, what was under way is sampled again by the weights of the checkpoint.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._stop = StopRequest(parts.run.announce)
        self.step = 0
        self._unlogged: dict[str, float] | None = None
        self._started = False
        self.total_steps = config.trainer.total_training_steps or (
            config.trainer.total_epochs * parts.loader.batches_per_epoch
        )
        self._overlaps = config.trainer.max_staleness > 0
        self._sampler = make_sampler(config, parts, self.total_steps)
        self._learner = Learner(
            parts.worker,
            parts.credit,
            parts.pad_id,
            config.actor_rollout_ref.actor.use_kl_loss,
            config.trainer.critic_warmup,
            parts.teacher,
            config.algorithm.distillation,
        )
        self._publisher = WeightPublisher(
            parts.engine,
            parts.worker.weights,
            tolerance=config.trainer.max_staleness,
            copies=self._overlaps and getattr(parts.engine, "shares_weights", False),
            keep_cache=self._overlaps and config.actor_rollout_ref.rollout.keep_cache,
        )

    def fit(self, resume_from: Path | None = None) -> None:
        """Run to the end. ``KeyboardInterrupt`` after a stop request, everything saved."""
        with asyncio.Runner() as runner, self._stop.installed():
            runner.run(self._fit(resume_from))
        interrupted = self._stop.requested and self.step < self.total_steps
        if interrupted:
            self.save()
        self.settle()
        if interrupted:
            raise KeyboardInterrupt

    async def _fit(self, resume_from: Path | None) -> None:
        try:
            await self.begin(resume_from)
            while self.step < self.total_steps and not self._stop.requested:
                await self._train_step()
        except Interrupted:
            pass
        finally:
            await self.end()

    async def begin(self, resume_from: Path | None) -> None:
        """Load a checkpoint if there is one, start sampling, validate if that is due."""
        enough = self._config.actor_rollout_ref.rollout.min_group
        groups, sampling = self._parts.groups, self._parts.sampling
        if resume_from is not None:
            with self._parts.run.phase("reading the checkpoint"):
                self._load(resume_from)
        self._sampler.start(lambda told: groups.rollouts(sampling, told, enough=enough))
        self._started = True
        if resume_from is None and self._config.trainer.val_before_train:
            self._unlogged = {}
        self._parts.run.expect(self.total_steps)
        await self._publish_weights()
        await self._finish_step()

    async def advance(self) -> tuple[dict[str, float], list[Trajectory]]:
        """One step after :meth:`begin`: its metrics and every trajectory sampled for it."""
        return await self._train_step()

    async def end(self) -> None:
        """Stop what is under way and release the engine; what had finished is stored."""
        try:
            if self._started:
                self._started = False
                await self._sampler.close(self.step)
        finally:
            await self._parts.groups.close()
            await self._parts.engine.close()

    async def _train_step(self) -> tuple[dict[str, float], list[Trajectory]]:
        with span("step", number=self.step + 1):
            return await self._take_step()

    async def _take_step(self) -> tuple[dict[str, float], list[Trajectory]]:
        clock = Clock()
        with clock("gen"):
            sample = await self._stop.guard(self._sampler.gather(self.step))
            try:
                greedy = await self._greedy_rewards(sample.groups)
            except BaseException:
                self._sampler.give_back(sample.groups)
                raise
        step = self.step
        metrics = rollout_metrics(sample.everything) | sample.metrics
        learn = self._learner.learn
        with self._parts.run.phase("update"):
            learned = await self._compute(lambda: learn(sample.chosen, greedy, step, clock))
        metrics |= learned.metrics
        self.step += 1
        self._parts.run.store_tokens(learned.tokens, step=self.step)
        with clock("update_weights"):
            metrics |= await self._publish_weights()
        metrics |= _throughput(sample, clock)
        self._unlogged = dict(metrics)
        await self._finish_step()
        self._parts.checkpoints.check()
        due = self._is_due(self._config.trainer.save_freq)
        if due or self._parts.checkpoints.overdue:
            self.save(passing=not due)
        return metrics, sample.everything

    async def _compute(self, work: Callable[[], T]) -> T:
        """Run the learner: beside the sampler in a thread, or where it is without overlap."""
        if self._overlaps:
            return await in_thread(work)
        await self._publisher.rest()
        return work()

    async def _publish_weights(self) -> dict[str, float]:
        with self._parts.run.phase("weights to the engine"):
            metrics = await self._publisher.publish(self.step)
        assert self._publisher.version is not None
        self._sampler.advance(self._publisher.version)
        return metrics

    async def _finish_step(self) -> None:
        """Validate if it is time to, and log. An interrupted validation is owed: see save."""
        if self._unlogged is None:
            return
        if self._is_due(self._config.trainer.test_freq):
            self._unlogged |= await self._validate()
        if self._unlogged:
            self._parts.run.log(self._unlogged, step=self.step)
        self._unlogged = None

    def _is_due(self, frequency: int) -> bool:
        """Every ``frequency`` steps, and where the run begins and ends."""
        return (frequency > 0 and self.step % frequency == 0) or self.step in (0, self.total_steps)

    async def _greedy_rewards(self, groups: Sequence[Group]) -> dict[str, float] | None:
        """Reward of each task's greedy trajectory, for the estimator that compares with it."""
        if not self._parts.credit.needs_greedy:
            return None
        alone = [replace(group, n=1, group_id=f"{group.group_id}~greedy") for group in groups]
        sampling = replace(self._parts.sampling, temperature=0.0)
        with self._parts.run.phase("greedy rollout"):
            greedy = await self._stop.guard(self._parts.groups.run(alone, sampling))
        scored = require_usable(greedy, self._config.actor_rollout_ref.rollout.max_failed_share)
        return {t.group_id.removesuffix("~greedy"): t.reward.value for t in scored if t.reward}

    # --- validation, checkpoints --------------------------------------------------

    async def _validate(self) -> dict[str, float]:
        validator = self._parts.validator
        if not validator.size:
            return {}
        finished: list[Trajectory] = []
        progress = self._parts.run.progress("validation", validator.size)

        def on_finished(trajectory: Trajectory) -> None:
            finished.append(trajectory)
            progress(len(finished))

        trajectories = await self._stop.guard(validator.run(on_finished))
        self._parts.run.store_validation(trajectories, step=self.step)
        return validation_metrics(trajectories)

    def save(self, *, passing: bool = False) -> None:
        """Everything that the next step depends on, and what is still to be logged of this one."""
        parts, store = self._parts, self._parts.checkpoints
        with parts.run.phase("saving a checkpoint"):
            draft = store.begin(self.step)
            snapshot = parts.worker.snapshot(draft)
            state = {
                "step": self.step,
                "unlogged": self._unlogged,
                "worker": snapshot.state,
                "sampler": self._sampler.state_dict(),
                "credit": parts.credit.state_dict(),
                "torch_rng": torch.get_rng_state(),
            }
            if snapshot.written is None:
                store.finish(draft, state, parts.worker.export, passing=passing)
            else:
                always = self._config.trainer.export_policy == "always"
                export = parts.worker.export_from if always else None
                store.finish_later(draft, state, snapshot.written, export, passing=passing)

    def settle(self) -> None:
        """Until checkpoints under way are whole and the newest has the policy's folder."""
        store = self._parts.checkpoints
        with self._parts.run.phase("exporting the policy"):
            store.wait()
            newest = store.latest()
            if newest is not None and not (newest / POLICY_FOLDER).exists():
                self._parts.worker.export_from(newest)

    def _load(self, path: Path) -> None:
        """Continue after the step of a checkpoint; later lines of the run's files go."""
        parts = self._parts
        state = load_state(path)
        self.step = int(state["step"])
        self._unlogged = state["unlogged"]
        parts.worker.restore(path, state["worker"])
        if "sampler" in state:
            self._sampler.load_state_dict(state["sampler"])
        else:  # written before sampling and learning could overlap
            parts.loader.load_state_dict(state["loader"])
        parts.credit.load_state_dict(state["credit"])
        torch.set_rng_state(state["torch_rng"])
        parts.run.rewind(self.step)


def make_sampler(config: Config, parts: Parts, total_steps: int) -> Sampler:
    """The sampler with the queue, the tasks and the memory that the settings ask for."""
    rollout, size = config.actor_rollout_ref.rollout, config.data.train_batch_size
    queue = make_queue(
        size,
        max_staleness=config.trainer.max_staleness,
        wait=config.trainer.stale == "wait",
        over_sampling=rollout.over_sampling,
        rounds=parts.credit.max_sampling_rounds,
        steps=total_steps,
    )
    settings = config.data.curriculum
    curriculum = Curriculum(settings, config.trainer.seed) if settings.enable else None
    return Sampler(
        SamplerSettings(size, rollout.n, rollout.min_group or rollout.n, rollout.max_failed_share),
        queue,
        TaskSupply(parts.loader, curriculum),
        parts.credit,
        parts.run,
        curriculum,
    )


def _throughput(sample: Sample, clock: Clock) -> dict[str, float]:
    """Tokens of the step's trajectories, tool tokens included, per second of the whole step."""
    tokens = sum(len(s.token_ids) for t in sample.everything for s in t.samples())
    timing = clock.metrics()
    return timing | {
        "perf/total_num_tokens": tokens,
        "perf/throughput": tokens / timing["timing_s/step"],
        "perf/time_per_step": timing["timing_s/step"],
    }
