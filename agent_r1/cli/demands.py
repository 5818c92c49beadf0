"""What a command asks of its configuration besides what every configuration must satisfy.

``*_needs``: settings that must be given, as :func:`agent_r1.config.load_config` takes them, with
an example of each. ``unknown_*``: names and files that do not exist, looked up by
:mod:`agent_r1.trainer.names`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_r1.config.schema import Config
    from agent_r1.config.sft import SftConfig


def training_needs(config: Config) -> dict[str, str]:
    files = {} if config.envs else {"data__train_files": "train.parquet (or generator:NAME)"}
    return {"actor_rollout_ref__model__path": "./my-model", **files}


def evaluation_needs(config: Config) -> dict[str, str]:
    files = {} if config.envs else {"data__val_files": "test.parquet (or generator:NAME)"}
    return {**files, **policy_needs(config)}


def policy_needs(config: Config) -> dict[str, str]:
    """What must be given so that there is a policy; a server has its own."""
    if config.actor_rollout_ref.rollout.name == "openai":
        return {}
    return {"actor_rollout_ref__model__path": "./my-model (or give --run or --server)"}


def sft_needs(config: SftConfig) -> dict[str, str]:
    return {"model__path": "./my-model", "data__train_files": "traces.jsonl"}


def unknown_in_training(config: Config) -> list[str]:
    from agent_r1.trainer import names

    return names.unknown_in_training(config)


def unknown_in_evaluation(config: Config) -> list[str]:
    from agent_r1.trainer import names

    return names.unknown_in_evaluation(config)


def unknown_in_chat(config: Config) -> list[str]:
    from agent_r1.trainer import names

    return names.unknown_in_chat(config)


def unknown_in_sft(config: SftConfig) -> list[str]:
    from agent_r1.trainer import names

    return names.unknown_in_sft(config)
