"""Supervised fine-tuning on traces: the cold start of an agent.

A model that never calls a tool cannot be rewarded for calling it well. This trainer
shows it complete episodes; tool output is context and is never learned. The loss of a
step is the mean over all of its target tokens, however the step is cut into micro-batches.

Everything random is a function of seed and step, so that a run that was interrupted and
resumed ends with the very same weights as one that was not.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from agent_r1.config.changes import Change, continued_changes
from agent_r1.config.sft import SftConfig
from agent_r1.data.batch import token_budget_batches
from agent_r1.errors import ConfigError, ModelError
from agent_r1.models.load import check_vocabulary, load_model, save_model
from agent_r1.models.logprobs import token_logprobs
from agent_r1.rollout.codec import open_codec
from agent_r1.trainer.build import pick_device
from agent_r1.trainer.checkpoint import POLICY_FOLDER, CheckpointStore, load_state, step_of
from agent_r1.trainer.interrupt import StopRequest
from agent_r1.trainer.sft_data import (
    Example,
    ExampleBatch,
    ExampleSource,
    training_source,
    validation_examples,
)
from agent_r1.trainer.trainable import Trainable

CHECKPOINTS = "checkpoints"
BEST_FOLDER = "best"
MAX_SKIPPED = 10
"""Steps without a finite gradient, one after another, that end a run."""


class Monitor(Protocol):
    """Where a run tells of itself; :class:`agent_r1.monitor.run.RunFolder` is one."""

    def expect(self, total_steps: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def log(self, metrics: Mapping[str, float], *, step: int) -> None: ...

    def announce(self, message: str) -> None: ...

    def phase(self, label: str) -> AbstractContextManager[None]: ...


class SilentMonitor:
    """Tells nobody."""

    def expect(self, total_steps: int) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        pass

    def announce(self, message: str) -> None:
        pass

    def phase(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, slots=True)
class SftReport:
    """How a cold start went. ``val_loss`` is ``None`` where nothing was validated."""

    steps: int
    train_loss: float
    val_loss: float | None
    best_step: int | None
    stopped_early: bool
    policy: Path
    seconds: float


@dataclass(slots=True)
class _Progress:
    """What a checkpoint must remember besides weights and optimizer."""

    step: int = 0
    train_loss: float = math.nan
    val_loss: float | None = None
    best_loss: float = math.inf
    best_step: int | None = None
    worse_in_a_row: int = 0
    skipped_in_a_row: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class SftParts:
    """What a trainer is made of; :func:`run_sft` makes them from a configuration."""

    model: nn.Module
    tokenizer: Any
    examples: ExampleSource
    validation: Sequence[Example]
    monitor: Monitor = field(default_factory=SilentMonitor)


class SftTrainer:
    """Trains until ``total_steps`` or until validation stops improving.

    A stop request (Ctrl-C, SIGTERM) ends the run after a checkpoint of the last finished
    step and raises ``KeyboardInterrupt``; the same command continues from there.
    """

    def __init__(self, config: SftConfig, parts: SftParts) -> None:
        self._config = config
        self._parts = parts
        self._run_dir = config.trainer.run_dir
        self.total_steps = _total_steps(config, parts.examples)
        self._network = Trainable(
            parts.model,
            config.optim,
            self.total_steps,
            grad_clip=config.optim.grad_clip,
            autocast=config.trainer.autocast,
        )
        self._checkpoints = CheckpointStore(
            self._run_dir / CHECKPOINTS,
            keep=config.trainer.max_ckpt_to_keep,
            every_minutes=config.trainer.save_minutes,
        )
        self._progress = _Progress()
        self._saved_step = -1

    def fit(self, resume_from: Path | None = None) -> SftReport:
        """Run to the end; returns where the trained model is."""
        started = time.perf_counter()
        if resume_from is not None:
            with self._parts.monitor.phase("reading the checkpoint"):
                self._load(resume_from)
        self._parts.monitor.expect(self.total_steps)
        stop = StopRequest(self._parts.monitor.announce)
        with stop.installed():
            while not (self._finished or stop.requested):
                self._step()
        if not self._finished:
            self._save()
            raise KeyboardInterrupt
        self._save()
        with self._parts.monitor.phase("exporting the policy"):
            policy = self._export()
        return self._report(policy, time.perf_counter() - started)

    @property
    def _finished(self) -> bool:
        return self._progress.step >= self.total_steps or self._out_of_patience

    @property
    def _out_of_patience(self) -> bool:
        patience = self._config.trainer.early_stop_patience
        return patience is not None and self._progress.worse_in_a_row >= patience

    def _step(self) -> None:
        started = time.perf_counter()
        progress, trainer = self._progress, self._config.trainer
        batch = ExampleBatch.of(self._parts.examples.batch(progress.step))
        with self._parts.monitor.phase("update"):
            metrics = self._update(batch)
        progress.step += 1
        progress.train_loss = metrics["train/loss"]
        last = progress.step == self.total_steps
        if self._parts.validation and (last or _due(progress.step, trainer.test_freq)):
            with self._parts.monitor.phase("validation"):
                metrics["val/loss"] = self._validate()
        if _due(progress.step, trainer.save_freq):
            self._save()
        elif self._checkpoints.overdue:
            self._save(passing=True)
        metrics["timing_s/step"] = time.perf_counter() - started
        self._parts.monitor.log(metrics, step=progress.step)

    def _update(self, batch: ExampleBatch) -> dict[str, float]:
        """One optimizer step over all targets of ``batch``."""
        targets = int(batch.loss_mask.sum())
        shares = [
            self._network.backward(self._summed_loss(batch, rows) / targets)
            for rows in self._micro_batches(batch)
        ]
        result = self._network.step()
        self._count_skipped(result.skipped)
        return {
            "train/loss": sum(map(float, shares)),
            "train/lr": result.lr,
            "train/grad_norm": result.grad_norm,
            "train/skipped": float(result.skipped),
            "train/tokens": float(batch.lengths.sum()),
            "train/target_tokens": float(targets),
        }

    def _count_skipped(self, skipped: bool) -> None:
        """A step that is not finite costs itself; a run of them will not end by itself."""
        self._progress.skipped_in_a_row = self._progress.skipped_in_a_row + 1 if skipped else 0
        if self._progress.skipped_in_a_row >= MAX_SKIPPED:
            raise ModelError(
                f"the last {MAX_SKIPPED} steps gave a loss or gradient that is not finite; lower "
                "optim.lr, raise optim.lr_warmup_steps, or train in float32"
            )

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss per target token over all validation examples; keeps count of progress."""
        batch = ExampleBatch.of(self._parts.validation)
        total = sum(float(self._summed_loss(batch, rows)) for rows in self._micro_batches(batch))
        loss = total / int(batch.loss_mask.sum())
        progress = self._progress
        progress.val_loss = loss
        if loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.worse_in_a_row = loss, progress.step, 0
            if self._config.trainer.early_stop_patience is not None:
                self._save_model(self._run_dir / BEST_FOLDER)
        else:
            progress.worse_in_a_row += 1
        return loss

    def _micro_batches(self, batch: ExampleBatch) -> list[Tensor]:
        order = torch.argsort(batch.lengths, descending=True, stable=True).tolist()
        budget = self._config.trainer.max_token_len_per_gpu
        return token_budget_batches(batch.lengths, order, budget)

    def _summed_loss(self, batch: ExampleBatch, rows: Tensor) -> Tensor:
        """Negative log-likelihood summed over the targets of ``rows``."""
        lengths = batch.lengths[rows]
        width = int(lengths.max())
        with self._network.autocast():
            result = token_logprobs(
                self._parts.model,
                batch.token_ids[rows, :width],
                lengths,
                mask=batch.loss_mask[rows, :width],
                share_prefixes=False,
            )
        return -result.logprobs.sum()

    # --- files --------------------------------------------------------------------

    def _save(self, *, passing: bool = False) -> None:
        step = self._progress.step
        if step == self._saved_step:
            return
        state = {"progress": self._progress.state_dict(), "network": self._network.state_dict()}
        with self._parts.monitor.phase("saving a checkpoint"):
            self._checkpoints.save(step, state, self._save_model, passing=passing)
        self._saved_step = step

    def _load(self, checkpoint: Path) -> None:
        state = load_state(checkpoint)
        self._progress = _Progress(**state["progress"])
        self._network.load_state_dict(state["network"])
        self._saved_step = self._progress.step
        self._parts.monitor.rewind(self._progress.step)

    def _save_model(self, folder: Path) -> None:
        save_model(self._parts.model, self._parts.tokenizer, folder)

    def _export(self) -> Path:
        """The model that the run was for: the best one if validation chose, else the last."""
        target = self._run_dir / POLICY_FOLDER
        best = self._run_dir / BEST_FOLDER
        chosen_earlier = self._progress.best_step not in (None, self._progress.step)
        if self._config.trainer.early_stop_patience is not None and chosen_earlier:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(best, target)
        else:
            self._save_model(target)
        return target

    def _report(self, policy: Path, seconds: float) -> SftReport:
        progress = self._progress
        return SftReport(
            steps=progress.step,
            train_loss=progress.train_loss,
            val_loss=progress.val_loss,
            best_step=progress.best_step,
            stopped_early=progress.step < self.total_steps,
            policy=policy,
            seconds=seconds,
        )


def run_sft(config: SftConfig, monitor: Monitor | None = None) -> SftReport:
    """Fine-tune as ``config`` says; continues a run that was interrupted.

    Raises :class:`ConfigError`, :class:`DataError` or :class:`ModelError` before the
    first step; ``KeyboardInterrupt`` after a stop request, with everything saved.
    """
    if not config.model.path:
        raise ConfigError("model.path is empty; give the folder of a Hugging Face model")
    trainer = config.trainer
    if trainer.num_threads is not None:
        torch.set_num_threads(trainer.num_threads)
    store = CheckpointStore(trainer.run_dir / CHECKPOINTS)
    resume = store.latest() if trainer.resume_mode == "auto" else None
    monitor = monitor or SilentMonitor()
    with monitor.phase("reading traces"):
        codec = open_codec(config.model)
        examples, encoded = training_source(config, codec)
        validation, val_encoded = validation_examples(config.data, codec)
    for name, count in (("training", encoded), ("validation", val_encoded)):
        if count.dropped:
            monitor.announce(
                f"{count.dropped} {name} traces are longer than data.max_length and left out"
            )
    with monitor.phase("loading the model"):
        model = _load_trainable(config)
    check_vocabulary(model, codec.tokenizer)
    if resume is not None:
        monitor.announce(f"continuing from step {step_of(resume)}")
    parts = SftParts(model, codec.tokenizer, examples, validation, monitor)
    return SftTrainer(config, parts).fit(resume)


def sft_changes(config: SftConfig) -> Sequence[Change]:
    """What a cold start that is continued changes; see :func:`continued_changes`."""
    trainer = config.trainer
    latest = CheckpointStore(trainer.run_dir / CHECKPOINTS).latest()
    resume = latest if trainer.resume_mode == "auto" else None
    return continued_changes(resume, config, accepted=trainer.accept_changes)


def _load_trainable(config: SftConfig) -> nn.Module:
    device = pick_device(config.trainer.device)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return load_model(
        config.model.path,
        dtype,
        device,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=config.model.enable_gradient_checkpointing,
    ).train()


def _total_steps(config: SftConfig, examples: ExampleSource) -> int:
    if config.trainer.total_training_steps is not None:
        return config.trainer.total_training_steps
    per_epoch = examples.steps_per_epoch
    if per_epoch is None:
        raise ConfigError(
            "a trace generator has no end; set trainer.total_training_steps, or limit it with "
            "data.train_max_samples"
        )
    return per_epoch * config.trainer.total_epochs


def _due(step: int, frequency: int) -> bool:
    return frequency > 0 and step % frequency == 0
