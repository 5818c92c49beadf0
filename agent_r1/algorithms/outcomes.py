"""What each way of ending means for the reward, the loss and the baseline.

| treatment | reward | loss | baseline | value after the end |
|---|---|---|---|---|
| ``count`` | as scored | yes | yes | 0 |
| ``penalise`` | as scored plus ``penalty`` | yes | yes | 0 |
| ``bootstrap`` | as scored | yes | yes | the critic's (same as ``count`` without a critic) |
| ``mask`` | as scored | no | yes | 0 |
| ``drop`` | none | no | no | does not exist |

``mask`` on ``length`` is DAPO's overlong filtering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import torch
from torch import Tensor

from agent_r1.errors import ConfigError
from agent_r1.types import Outcome


class Treatment(StrEnum):
    """See the table of the module."""

    COUNT = "count"
    PENALISE = "penalise"
    BOOTSTRAP = "bootstrap"
    MASK = "mask"
    DROP = "drop"


DEFAULT_TREATMENTS: Mapping[Outcome, Treatment] = MappingProxyType(
    {
        Outcome.FINISHED: Treatment.COUNT,
        Outcome.TURN_LIMIT: Treatment.COUNT,
        Outcome.LENGTH: Treatment.COUNT,
        Outcome.CONTEXT: Treatment.COUNT,
        # The wall clock depends on the load of the machine, not on the policy alone.
        Outcome.TIMEOUT: Treatment.MASK,
        # Environment or engine failed: there is no score, and None is not 0.
        Outcome.TOOL_ERROR: Treatment.DROP,
        Outcome.ENGINE_ERROR: Treatment.DROP,
    }
)


@dataclass(frozen=True, slots=True)
class OutcomeRows:
    """The policy applied to a batch; fields of ``AdvantageInputs`` and of the loss."""

    reward: Tensor
    """[B] with penalties."""
    loss_mask: Tensor
    """[B, T] bool, empty on masked and dropped rows."""
    counted: Tensor
    """[B] bool: enters the baseline."""
    truncated: Tensor
    """[B] bool: its end is bootstrapped (``AdvantageInputs.truncated``)."""


@dataclass(frozen=True, slots=True)
class OutcomePolicy:
    """A treatment for every outcome. Build it with :meth:`from_options`."""

    treatments: Mapping[Outcome, Treatment] = field(default_factory=lambda: DEFAULT_TREATMENTS)
    penalty: float = -1.0
    """What ``penalise`` adds to the reward."""

    def __post_init__(self) -> None:
        missing = [o.value for o in Outcome if o not in self.treatments]
        if missing:
            raise ConfigError(f"outcomes without a treatment: {', '.join(missing)}")
        for outcome, treatment in self.treatments.items():
            if outcome.failed and treatment is not Treatment.DROP:
                raise ConfigError(
                    f"{outcome} trajectories have no score to {treatment}; "
                    "the only treatment is 'drop'"
                )
            if outcome.terminated and treatment is Treatment.BOOTSTRAP:
                raise ConfigError(f"{outcome} ends the episode: there is no value to bootstrap")

    @classmethod
    def from_options(
        cls, treatments: Mapping[str, str] | None = None, *, penalty: float = -1.0
    ) -> OutcomePolicy:
        """The defaults with ``{"length": "bootstrap", ...}`` laid over them."""
        table = dict(DEFAULT_TREATMENTS)
        for name, treatment in (treatments or {}).items():
            try:
                table[Outcome(name)] = Treatment(treatment)
            except ValueError as error:
                outcomes = ", ".join(o.value for o in Outcome)
                choices = ", ".join(t.value for t in Treatment)
                raise ConfigError(
                    f"{name}: {treatment} is no outcome policy; outcomes: {outcomes}; "
                    f"treatments: {choices}"
                ) from error
        return cls(MappingProxyType(table), penalty)

    def keeps(self, outcome: Outcome) -> bool:
        """The trajectory enters the batch."""
        return self.treatments[outcome] is not Treatment.DROP

    def reward(self, outcome: Outcome, value: float) -> float:
        """The scored reward with the outcome's penalty, if it has one."""
        penalised = self.treatments[outcome] is Treatment.PENALISE
        return value + self.penalty if penalised else value

    def apply(self, outcomes: Sequence[Outcome], reward: Tensor, loss_mask: Tensor) -> OutcomeRows:
        """Apply the policy to the rows of a batch.

        Args:
            outcomes: of each row's trajectory; ``outcomes`` may be shorter than B, and
                the rows beyond are padding.
            reward: [B] as scored.
            loss_mask: [B, T].
        """
        device = reward.device
        treated = [self.treatments[outcome] for outcome in outcomes]
        padding = [Treatment.DROP] * (len(reward) - len(treated))

        def rows(*which: Treatment) -> Tensor:
            return torch.tensor([t in which for t in treated + padding], device=device)

        kept = ~rows(Treatment.DROP)
        trained = kept & ~rows(Treatment.MASK)
        penalty = self.penalty * rows(Treatment.PENALISE).to(reward.dtype)
        return OutcomeRows(
            reward=reward + penalty,
            loss_mask=loss_mask.bool() & trained[:, None],
            counted=kept,
            truncated=rows(Treatment.BOOTSTRAP),
        )
