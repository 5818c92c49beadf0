"""What a continued run changes of the settings that its earlier steps were made with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_r1.config.load import load_section
from agent_r1.config.reading import flat, shown
from agent_r1.config.section import Section
from agent_r1.errors import ConfigError

EXPERIMENT = (
    "envs",
    "tool.",
    "reward.",
    "actor_rollout_ref.model.",
    "actor_rollout_ref.ref.path",
    "critic.model.",
    "model.",
)
"""Settings that say what is learned: with another value, earlier steps belong to another
experiment."""

INCIDENTAL = (
    "tool.timeout_s",
    "reward.timeout_s",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    "model.enable_gradient_checkpointing",
)
"""Those below the same sections that change time or memory only."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, as it was stored and as it is now."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.before)} -> {shown(self.after)}"

    @property
    def of_experiment(self) -> bool:
        return self.key.startswith(EXPERIMENT) and self.key not in INCIDENTAL


def changes_since(file: Path, config: Section) -> tuple[Change, ...]:
    """How ``config`` differs from one that :func:`agent_r1.config.load.to_yaml` stored.

    A key that the stored one lacks, because it is newer, counts as stored with its default.
    Raises :class:`ConfigError` when the file cannot be read back.
    """
    stored = load_section(type(config), file, environ={})
    root = type(config)
    before, now = (dict(flat(c.model_dump(mode="json"), root)) for c in (stored, config))
    return tuple(
        Change(key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    )


def require_same_experiment(changes: Iterable[Change], where: Path) -> None:
    """Refuse to continue when the environment, the reward or a model is another.

    Raises:
        ConfigError: names each such setting with both values, and the ways out.
    """
    other = [change for change in changes if change.of_experiment]
    if other:
        listed = "\n".join(f"  {change}" for change in other)
        raise ConfigError(
            f"the checkpoint {where} was trained with another environment, reward or model:\n"
            f"{listed}\nSet them back, start anew with trainer.resume_mode=disable, or continue "
            "all the same with trainer.accept_changes=true"
        )


def continued_changes(
    checkpoint: Path | None, config: Section, *, accepted: bool
) -> Sequence[Change]:
    """What a run that continues from ``checkpoint`` changes; nothing for a fresh start.

    The settings are those beside the folder of checkpoints. Where they are missing or cannot
    be read any more there is nothing to compare with. Raises as
    :func:`require_same_experiment` unless ``accepted``.
    """
    if checkpoint is None:
        return ()
    settings = checkpoint.resolve().parents[1] / "config.yaml"
    if not settings.is_file():
        return ()
    try:
        changes = changes_since(settings, config)
    except ConfigError:
        return ()
    if not accepted:
        require_same_experiment(changes, checkpoint)
    return tuple(c for c in changes if not c.key.startswith(_OF_THE_COMMAND))


_OF_THE_COMMAND = ("trainer.resume_", "trainer.accept_changes")
