"""The whole configuration of a run, typed.

One dialect: the dotted name of a setting is the same in YAML, on the command line and
here. A component is given its own section, never the whole. Nothing heavy is imported,
so that a mistake in a file is reported before the first second has passed.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from agent_r1.config.policy import (
    ActorConfig,
    ActorRolloutRefConfig,
    AggregationMode,
    CriticConfig,
    CriticModelConfig,
    DType,
    KLKind,
    ModelConfig,
    OptimConfig,
    PolicyLossConfig,
    RefConfig,
    RolloutConfig,
    SamplingConfig,
    ServerConfig,
)
from agent_r1.config.section import Section
from agent_r1.config.task import (
    AlgorithmConfig,
    ClipCovConfig,
    DataConfig,
    DistillationConfig,
    FilterGroupsConfig,
    KLControlConfig,
    OutcomePolicyConfig,
    OutcomeTreatment,
    OverlongBufferConfig,
    RayConfig,
    RewardConfig,
    RolloutCorrectionConfig,
    SandboxConfig,
    SandboxLimitsConfig,
    ToolConfig,
    TrainerConfig,
)


class Config(Section):
    """Everything a training run is told. ``Config()`` holds the defaults."""

    data: DataConfig = DataConfig()
    actor_rollout_ref: ActorRolloutRefConfig = ActorRolloutRefConfig()
    critic: CriticConfig = CriticConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    reward: RewardConfig = RewardConfig()
    trainer: TrainerConfig = TrainerConfig()
    tool: ToolConfig = ToolConfig()
    sandbox: SandboxConfig = SandboxConfig()
    ray: RayConfig = RayConfig()
    envs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Several environments in one run, by names of your choice: each an entry with ``weight`` (its
    share of the tasks against the others', all entries or none) and whatever it sets otherwise
    than the run of ``tool``, ``reward`` and ``data`` (docs/mixtures.md). Empty: one environment."""

    @property
    def context_window(self) -> int:
        """Largest prompt plus response, in tokens."""
        length = self.data.max_prompt_length + self.data.max_response_length
        return self.actor_rollout_ref.rollout.max_model_len or length


__all__ = [
    "ActorConfig",
    "ActorRolloutRefConfig",
    "AggregationMode",
    "AlgorithmConfig",
    "ClipCovConfig",
    "Config",
    "CriticConfig",
    "CriticModelConfig",
    "DType",
    "DataConfig",
    "DistillationConfig",
    "FilterGroupsConfig",
    "KLControlConfig",
    "KLKind",
    "ModelConfig",
    "OptimConfig",
    "OutcomePolicyConfig",
    "OutcomeTreatment",
    "OverlongBufferConfig",
    "PolicyLossConfig",
    "RayConfig",
    "RefConfig",
    "RewardConfig",
    "RolloutConfig",
    "RolloutCorrectionConfig",
    "SamplingConfig",
    "SandboxConfig",
    "SandboxLimitsConfig",
    "Section",
    "ServerConfig",
    "ToolConfig",
    "TrainerConfig",
]
