"""The configuration of a cold start: supervised fine-tuning on traces.

The same dialect as :mod:`agent_r1.config.schema` with a root of its own, because a cold
start has no rollouts, rewards or tools to configure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from agent_r1.config.policy import ModelConfig, OptimConfig
from agent_r1.config.section import Names, OffWord, PositiveShare, Section


class SftDataConfig(Section):
    """Where traces come from. docs/tutorials/cold_start.md describes the formats."""

    train_files: Names = ()
    """JSONL, JSON or Parquet files of traces, or ``generator:NAME`` (a registered name, or a path
    ``package.module:function`` or ``file.py:function``)."""
    val_files: Names = ()
    """The same for validation. Empty: no validation."""
    generator_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the training generator."""
    val_generator_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the validation generator, over those of ``generator_kwargs``."""
    train_batch_size: PositiveInt = 64
    """Traces per optimizer step."""
    max_length: PositiveInt = 4096
    """Longest trace, in tokens, prompt included."""
    overlong: Literal["drop", "error"] = "drop"
    """What to do with longer traces: leave them out and report how many, or stop."""
    shuffle: bool = True
    """Shuffle the traces of files anew in every epoch. Generators keep their order."""
    seed: int | None = None
    """Seed of the order. null: ``trainer.seed``."""
    train_max_samples: PositiveInt | None = None
    """Use this many training traces only. null: all (a generator is endless)."""
    val_max_samples: PositiveInt | None = None
    """Use this many validation traces only. null: all; a generator needs a number."""


class SftOptimConfig(OptimConfig):
    """The optimizer of the cold start and its schedule."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate; with ``muon`` that of the weight matrices."""
    lr_rest: PositiveFloat | None = None
    """With ``muon``: peak rate of what AdamW updates (embeddings, norms). null: ``lr``."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Momentum of ``muon``."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """Shape after the warm-up."""
    lr_decay_ratio: PositiveShare = 1.0
    """Share of all steps, at the end, over which ``linear`` and ``cosine`` fall."""
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""


class SftTrainerConfig(Section):
    """The run: its length, its folder, its checkpoints and validations."""

    total_epochs: PositiveInt = 1
    """Passes over the traces of files."""
    total_training_steps: PositiveInt | None = None
    """Steps of the run. null: ``total_epochs`` decides; a generator needs a number."""
    max_token_len_per_gpu: PositiveInt = 16384
    """Tokens of one forward and backward pass. Changes memory and speed, never the gradient."""
    autocast: Annotated[Literal["off", "bfloat16", "float16"], OffWord] = "off"
    """Compute the forward pass in this type while the weights keep theirs."""
    save_freq: Annotated[int, Field(ge=-1)] = -1
    """Steps between checkpoints that stay. -1 or 0: at the end only."""
    save_minutes: PositiveFloat | None = 10.0
    """Longest time between checkpoints, in minutes: a killed run loses at most this and the step
    under way. Such a checkpoint is replaced by the next. null: ``save_freq`` alone decides."""
    test_freq: Annotated[int, Field(ge=-1)] = -1
    """Steps between validations. -1 or 0: at the end only."""
    early_stop_patience: PositiveInt | None = None
    """Stop after this many validations without a better loss, and keep the best model.
    null: run to the end and keep the last model."""
    logger: Names = ("console",)
    """Any of ``console``, ``wandb``, ``tensorboard``, ``mlflow``, ``trackio``, or the path of a
    class (docs/runs.md); ``metrics.jsonl`` is always written."""
    project_name: Annotated[str, Field(min_length=1)] = "agent_r1"
    """Groups runs, in W&B and on disk."""
    experiment_name: Annotated[str, Field(min_length=1)] = "sft"
    """Names this run."""
    default_local_dir: str | None = None
    """Run folder. null: ``runs/<project_name>/<experiment_name>``."""
    resume_mode: Literal["auto", "disable"] = "auto"
    """``auto`` continues from the newest checkpoint of the run folder, if there is one."""
    accept_changes: bool = False
    """Continue a run although its model differs from that of the steps before. Without it such a
    change is an error; other changes are printed and recorded."""
    max_ckpt_to_keep: PositiveInt | None = 1
    """Checkpoints kept; older ones are removed. null: all."""
    seed: NonNegativeInt = 0
    """Seed of the order of the traces."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU if there is one."""
    num_threads: PositiveInt | None = None
    """CPU threads of torch. null: torch's own choice."""

    @property
    def run_dir(self) -> Path:
        """Where the run's files are."""
        default = Path("runs") / self.project_name / self.experiment_name
        return Path(self.default_local_dir).expanduser() if self.default_local_dir else default


class SftConfig(Section):
    """Everything a cold start is told. ``SftConfig()`` holds the defaults."""

    model: ModelConfig = ModelConfig()
    data: SftDataConfig = SftDataConfig()
    optim: SftOptimConfig = SftOptimConfig()
    trainer: SftTrainerConfig = SftTrainerConfig()
