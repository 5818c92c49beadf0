"""One update of the networks from the trajectories of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent_r1.config.task import DistillationConfig
from agent_r1.data.batch import Batch
from agent_r1.monitor.tokens import TokenRecords
from agent_r1.trainer.clock import Clock
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.policy_worker import PolicyWorker
from agent_r1.trainer.seen import token_records
from agent_r1.trainer.teacher import Teacher
from agent_r1.types import Trajectory


@dataclass(frozen=True, slots=True)
class Learned:
    """What an update tells: the step's metrics, and what it saw of every token."""

    metrics: dict[str, float]
    tokens: TokenRecords


@dataclass(frozen=True, slots=True)
class Learner:
    """Trajectories -> batch -> log-probabilities, values -> credit -> critic, policy.

    Blocks while it computes and touches nothing but the worker and the credit's controller,
    so it may run in any one thread.
    """

    worker: PolicyWorker
    credit: CreditAssigner
    pad_id: int
    use_kl_loss: bool
    critic_warmup: int
    teacher: Teacher | None = None
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def learn(
        self,
        trajectories: Sequence[Trajectory],
        greedy_rewards: Mapping[str, float] | None,
        step: int,
        clock: Clock,
    ) -> Learned:
        """Improve version ``step``; in the first ``critic_warmup`` steps the critic only."""
        worker, credit = self.worker, self.credit
        batch = Batch.from_trajectories(trajectories, self.pad_id)
        recomputed = ref = values = told = view = seen = None
        if self.teacher is not None:
            with clock("teacher"):
                if self.distillation.as_advantage:
                    told = self.teacher.logprobs(batch)
                else:
                    view = self.teacher.view(batch, self.distillation.tokens)
        if credit.needs_logprobs:
            with clock("old_log_prob"):
                recomputed = worker.logprobs(batch)
        if credit.needs_ref or self.use_kl_loss:
            with clock("ref"):
                ref = worker.ref_logprobs(batch)
        if credit.needs_values:
            with clock("values"):
                values = worker.values(batch)
        with clock("adv"):
            worth = credit.assign(
                batch, trajectories, recomputed, ref, values, greedy_rewards, told
            )
        metrics = dict(worth.metrics)
        if values is not None and worth.returns is not None:
            with clock("update_critic"):
                metrics |= worker.update_critic(worth.batch, worth.returns, values.tokens)
        if step >= self.critic_warmup:
            with clock("update_actor"):
                metrics |= worker.update_policy(
                    worth.batch, worth.old_logprobs, worth.advantages, ref, worth.weights, view
                )
            seen = worker.seen
        return Learned(metrics, token_records(trajectories, batch, worth, recomputed, seen))
