"""Forward and backward: everything that a training step does with the networks.

The loop (``trainer/rl.py``) sees a :class:`~agent_r1.trainer.policy_worker.PolicyWorker`;
:class:`LocalWorker` is the implementation for one process and one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.algorithms.aggregate import aggregate, loss_weights
from agent_r1.algorithms.kl import kl_penalty
from agent_r1.algorithms.losses import (
    PolicyLossInputs,
    PolicyLossTerms,
    value_loss,
    with_regularisers,
)
from agent_r1.algorithms.registry import bind, resolve_policy_loss
from agent_r1.algorithms.stats import value_stats
from agent_r1.config.policy import ActorConfig, CriticConfig
from agent_r1.data.batch import Batch
from agent_r1.errors import ConfigError
from agent_r1.models.divergence import TeacherView
from agent_r1.models.load import save_model, visiting
from agent_r1.models.logprobs import TokenLogprobs, token_logprobs
from agent_r1.models.lora import has_lora, without_lora
from agent_r1.models.sharded import is_sharded
from agent_r1.models.value import ValueModel, Values
from agent_r1.models.weights import ModuleWeights
from agent_r1.trainer.checkpoint import Snapshot, whole_state
from agent_r1.trainer.peers import ALONE, Peers
from agent_r1.trainer.policy_worker import Minibatch
from agent_r1.trainer.seen import Seen
from agent_r1.trainer.trainable import StepResult, Trainable
from agent_r1.trainer.update_metrics import CriticTotals, PolicyTotals

Forward = Callable[[Batch, Tensor], Tensor]
"""A micro-batch and its row numbers to ``[b, t]``."""


class LocalWorker:
    """Policy, reference and critic on one device of this process.

    ``temperature`` is that of sampling. ``total_steps`` is the number of optimizer steps of
    the whole run, for the learning-rate schedules (:func:`optimizer_steps` computes it).
    ``loss_divisor`` is the constant of ``seq-mean-token-sum-norm`` unless the section names
    one. ``seed`` decides the order of mini-batches. ``distillation_coef`` weighs the divergence
    to a teacher. ``tokenizer`` is only exported along.
    Without a ``reference`` a policy with adapters is measured against its own base. A
    reference on another device than the policy comes to the policy's for its forward pass.
    """

    def __init__(
        self,
        policy: nn.Module,
        config: ActorConfig,
        *,
        temperature: float = 1.0,
        total_steps: int = 1,
        loss_divisor: int | None = None,
        reference: nn.Module | None = None,
        critic: ValueModel | None = None,
        critic_config: CriticConfig | None = None,
        critic_total_steps: int | None = None,
        seed: int = 0,
        tokenizer: Any = None,
        distillation_coef: float = 1.0,
        peers: Peers = ALONE,
    ) -> None:
        self._config = config
        self._peers = peers
        self._tokenizer = tokenizer
        self._critic_config = critic_config or CriticConfig()
        self._temperature = temperature
        self._distillation_coef = distillation_coef
        self._divisor = config.loss_scale_factor or loss_divisor
        self._actor = Trainable(
            policy,
            config.optim,
            total_steps,
            grad_clip=config.grad_clip,
            autocast=config.autocast,
            peers=peers,
        )
        self._reference = None if reference is None else reference.requires_grad_(False)
        self._critic: Trainable | None = None
        if critic is not None:
            self._critic = Trainable(
                critic,
                self._critic_config.optim,
                total_steps if critic_total_steps is None else critic_total_steps,
                grad_clip=self._critic_config.grad_clip,
                autocast=config.autocast,
                peers=peers,
            )
        self._policy_loss = _policy_loss(config)
        self._order = torch.Generator().manual_seed(seed)
        self.seen: Seen | None = None

    @property
    def policy(self) -> nn.Module:
        """The network itself, for an engine of this process that computes with its tensors."""
        return self._actor.module

    @property
    def weights(self) -> ModuleWeights:
        return ModuleWeights(self._actor.module)

    # --- forward ------------------------------------------------------------------

    def logprobs(self, batch: Batch) -> Tensor:
        """``[B, T]`` of the policy as it is now."""
        return self._forward(batch, self._logprobs_of(self._actor.module))

    def ref_logprobs(self, batch: Batch) -> Tensor:
        """``[B, T]`` of the frozen reference."""
        if self._reference is None:
            policy = self._actor.module
            if not has_lora(policy):
                raise ConfigError("no reference policy was loaded; give LocalWorker a reference")
            with without_lora(policy):
                return self._forward(batch, self._logprobs_of(policy))
        if is_sharded(self._reference):
            return self._forward(batch, self._logprobs_of(self._reference))
        with visiting(self._reference, self._actor.device):
            return self._forward(batch, self._logprobs_of(self._reference))

    def values(self, batch: Batch) -> Values:
        """The critic's view of a batch, on action tokens and after the last one."""
        critic = self._critic_trainable()
        found = torch.zeros(len(batch), device=critic.device)

        def run(part: Batch, rows: Tensor) -> Tensor:
            values = _values(critic.module, part)
            found[rows.to(found.device)] = values.final
            return values.tokens

        return Values(self._forward(batch, run), self._peers.add(found))

    def _logprobs_of(self, model: nn.Module) -> Forward:
        def run(part: Batch, rows: Tensor) -> Tensor:
            return self._token_logprobs(model, part).logprobs

        return run

    @torch.no_grad()
    def _forward(self, batch: Batch, run: Forward) -> Tensor:
        with self._actor.autocast():
            cuts = self._peers.cut(batch, self._config.ppo_max_token_len_per_gpu)
            found = in_micro_batches(batch, run, device=self._actor.device, cuts=cuts)
            return self._peers.add(found)

    def _token_logprobs(
        self,
        model: nn.Module,
        part: Batch,
        *,
        with_entropy: bool = False,
        teacher: TeacherView | None = None,
    ) -> TokenLogprobs:
        return token_logprobs(
            model,
            part.token_ids,
            part.lengths,
            self._temperature,
            mask=part.loss_mask,
            with_entropy=with_entropy,
            teacher=teacher,
        )

    # --- policy -------------------------------------------------------------------

    def update_policy(
        self,
        batch: Batch,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        ref_logprobs: Tensor | None = None,
        weights: Tensor | None = None,
        teacher: TeacherView | None = None,
    ) -> dict[str, float]:
        """All optimizer steps of one batch: mini-batches of whole groups, times epochs.

        ``old_logprobs`` None means those of the policy as it is; when a single step is
        taken they are then not computed twice. ``weights`` are importance weights of the
        off-policy correction. With a ``teacher``'s view the reverse KL to it joins the loss of
        every action token. Returns metrics named ``actor/…``, means over the steps taken.
        """
        config = self._config
        if config.use_kl_loss and ref_logprobs is None:
            raise ConfigError("use_kl_loss needs log-probabilities of the reference policy")
        plan = list(self._plan(batch, config.ppo_mini_batch_size, config.ppo_epochs))
        seen = Seen.nothing(batch)
        if old_logprobs is None and len(plan) > 1:
            old_logprobs = self.logprobs(batch)
            seen.know(old_logprobs)
        totals = PolicyTotals()
        with _training(self._actor.module):
            for rows in plan:
                part = batch.select(rows)
                width = part.token_ids.shape[1]
                minibatch = Minibatch(
                    part,
                    self._loss_weights(part, config.loss_agg_mode),
                    rows.cpu(),
                    advantages=_cut(advantages, rows, width, part),
                    old_logprobs=_cut(old_logprobs, rows, width, part),
                    ref_logprobs=_cut(ref_logprobs, rows, width, part),
                    weights=_cut(weights, rows, width, part),
                    teacher=None if teacher is None else teacher.select(rows, width),
                )
                totals.add(self._policy_step(minibatch, totals, seen))
        totals.merge(self._peers)
        self.seen = seen.merged(self._peers, self._actor.device)
        return totals.metrics(config.kl_loss_coef if config.use_kl_loss else None)

    def _policy_step(self, minibatch: Minibatch, totals: PolicyTotals, seen: Seen) -> StepResult:
        observations: list[Callable[[], None]] = []
        actor, budget = self._actor, self._config.ppo_max_token_len_per_gpu
        for rows in self._peers.passes(actor.module, minibatch.batch, budget):
            with actor.autocast():
                loss, observe = self._policy_objective(minibatch.select(rows), totals, seen)
            actor.backward(loss)
            observations.append(observe)
        for observe in observations:  # numbers for the logs wait for the GPU, which then has work
            observe()
        return actor.step()

    def _policy_objective(
        self, part: Minibatch, totals: PolicyTotals, seen: Seen
    ) -> tuple[Tensor, Callable[[], None]]:
        """The rows' share of the mini-batch loss, and what tells the logs of it."""
        config, rows = self._config, part.batch
        result = self._token_logprobs(
            self._actor.module, rows, with_entropy=True, teacher=part.teacher
        )
        part = part.to(self._actor.device)
        mask = part.batch.loss_mask
        assert part.advantages is not None
        old = result.logprobs.detach() if part.old_logprobs is None else part.old_logprobs
        inputs = PolicyLossInputs(result.logprobs, old, part.advantages, mask, part.weights)
        terms = self._policy_loss(inputs)
        kl = None
        if config.use_kl_loss and part.ref_logprobs is not None:
            kl = kl_penalty(result.logprobs, part.ref_logprobs, config.kl_loss_type)
        per_token = with_regularisers(
            terms.loss,
            mask,
            kl=kl,
            kl_loss_coef=config.kl_loss_coef,
            entropy=result.entropy,
            entropy_coeff=config.entropy_coeff,
        )
        if result.divergence is not None:
            per_token = per_token + self._distillation_coef * result.divergence
        loss = aggregate(per_token, mask, part.loss_weights)

        def observe() -> None:
            totals.compare(result.logprobs, part.batch.behavior_logprobs, mask)
            seen.note(part.index, result.logprobs, result.entropy, before_steps=not totals.count)
            totals.observe(inputs, terms, part.loss_weights, result.entropy, kl)
            if result.divergence is not None:
                totals.distil(result.divergence, mask)

        return loss, observe

    # --- critic -------------------------------------------------------------------

    def update_critic(self, batch: Batch, returns: Tensor, old_values: Tensor) -> dict[str, float]:
        """All optimizer steps of the critic on one batch; metrics named ``critic/…``."""
        critic, config = self._critic_trainable(), self._critic_config
        size = config.ppo_mini_batch_size or self._config.ppo_mini_batch_size
        totals = CriticTotals()
        with _training(critic.module):
            for rows in self._plan(batch, size, config.ppo_epochs):
                part = batch.select(rows)
                width = part.token_ids.shape[1]
                minibatch = Minibatch(
                    part,
                    self._loss_weights(part, config.loss_agg_mode),
                    rows.cpu(),
                    returns=_cut(returns, rows, width, part),
                    old_values=_cut(old_values, rows, width, part),
                )
                totals.add(self._critic_step(critic, minibatch, totals))
        totals.merge(self._peers)
        return totals.metrics()

    def _critic_step(
        self, critic: Trainable, minibatch: Minibatch, totals: CriticTotals
    ) -> StepResult:
        config = self._critic_config
        budget = config.ppo_max_token_len_per_gpu or self._config.ppo_max_token_len_per_gpu
        for rows in self._peers.passes(critic.module, minibatch.batch, budget):
            part = minibatch.select(rows)
            with critic.autocast():
                values = _values(critic.module, part.batch).tokens
            part = part.to(critic.device)
            mask = part.batch.loss_mask
            assert part.returns is not None and part.old_values is not None
            terms = value_loss(
                values, part.old_values, part.returns, mask, cliprange_value=config.cliprange_value
            )
            loss = critic.backward(aggregate(terms.loss, mask, part.loss_weights))
            totals.observe(float(loss), value_stats(values, part.returns, mask, terms))
        return critic.step()

    def _critic_trainable(self) -> Trainable:
        if self._critic is None:
            raise ConfigError("no critic was loaded; give LocalWorker a ValueModel")
        return self._critic

    # --- shared -------------------------------------------------------------------

    def _plan(self, batch: Batch, groups: int | None, epochs: int) -> Iterator[Tensor]:
        """Rows of each optimizer step.

        A mini-batch is a number of *groups*, so that neither turns nor segments change how
        many steps are taken. A group without a token to train on (padding, masked
        outcomes) is in none: a step without a gradient would still move the weights by
        the optimizer's momentum.
        """
        members = batch.group_id.cpu()
        present = torch.unique(members[batch.loss_mask.any(1).cpu()])
        for _ in range(epochs if len(present) else 0):
            order = present
            if self._config.shuffle and groups is not None and groups < len(present):
                order = present[torch.randperm(len(present), generator=self._order)]
            for chosen in order.split(groups or len(present)):
                yield torch.isin(members, chosen).nonzero().squeeze(1).to(batch.group_id.device)

    def _loss_weights(self, part: Batch, mode: str) -> Tensor:
        return loss_weights(
            part.loss_mask, mode, trajectory_id=part.trajectory_id, divisor=self._divisor
        )

    def export(self, path: Path) -> None:
        """Write the policy and its tokenizer as a Hugging Face model folder.

        Adapters are merged, so that everything can load it, and lie beside it once more by
        themselves, in the folder ``adapter``.
        """
        save_model(self.policy, self._tokenizer, path)

    def snapshot(self, draft: Path) -> Snapshot:
        """All of :meth:`state_dict`, for the state file."""
        return Snapshot(self.state_dict())

    def restore(self, checkpoint: Path, state: Any) -> None:
        """Continue where a checkpoint was written, by one process or by several."""
        self.load_state_dict(whole_state(state, checkpoint))

    def export_from(self, checkpoint: Path) -> None:
        """Nothing: a checkpoint of one process has its policy from the beginning."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact continuation needs; the reference is not in it."""
        return {
            "actor": self._actor.state_dict(),
            "critic": None if self._critic is None else self._critic.state_dict(),
            "order": self._order.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self._actor.load_state_dict(state["actor"])
        if self._critic is not None:
            self._critic.load_state_dict(state["critic"])
        self._order.set_state(state["order"].cpu())


def in_micro_batches(
    batch: Batch, run: Forward, *, device: torch.device, cuts: Sequence[Tensor]
) -> Tensor:
    """``run`` over the micro-batches ``cuts``, put back into ``[B, T]`` in the batch's order.

    Rows that are in none of them are 0.
    """
    result = torch.zeros(batch.token_ids.shape, device=device)
    for rows in cuts:
        computed = run(batch.select(rows), rows)
        result[rows.to(device), : computed.shape[1]] = computed.to(result.dtype)
    return result


def optimizer_steps(
    training_steps: int, prompts_per_step: int, mini_batch: int | None, epochs: int
) -> int:
    """Optimizer steps of a whole run, for the learning-rate schedule."""
    per_epoch = 1 if mini_batch is None else math.ceil(prompts_per_step / mini_batch)
    return training_steps * per_epoch * epochs


def _policy_loss(config: ActorConfig) -> Callable[[PolicyLossInputs], PolicyLossTerms]:
    """The configured surrogate with its bounds.

    Bounds that the configuration leaves alone are the loss's own, because a sensible
    epsilon of a token ratio (PPO) is a thousand times that of a sequence ratio (GSPO).
    """
    shared: dict[str, float | None] = {"clip_ratio_c": config.clip_ratio_c}
    for name, value in (
        ("clip_ratio_low", config.clip_ratio_low),
        ("clip_ratio_high", config.clip_ratio_high),
    ):
        chosen = config.clip_ratio if value is None else value
        if chosen is not None:
            shared[name] = chosen
    loss = config.policy_loss
    return bind(resolve_policy_loss(loss.loss_mode), options=loss.kwargs, shared=shared)


def _values(critic: nn.Module, part: Batch) -> Values:
    assert isinstance(critic, ValueModel)
    return critic.values(part.token_ids, part.lengths, mask=part.loss_mask)


def _cut(tensor: Tensor | None, rows: Tensor, width: int, like: Batch) -> Tensor | None:
    """``[B, T]`` to the rows and the width of a part of the batch, on its device."""
    if tensor is None:
        return None
    return tensor.to(like.token_ids.device)[rows, :width]


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """Training mode where gradient checkpointing needs it; dropout is never wanted."""
    module.train(any(getattr(m, "gradient_checkpointing", False) for m in module.modules()))
    try:
        yield
    finally:
        module.eval()
