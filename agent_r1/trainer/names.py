"""Names and files that a configuration gives and nothing has, found without importing anything.

For a configuration with another mistake, so that all are told at once: what only importing can
tell (a file of the user's that fails, a reward's options) is in :mod:`agent_r1.trainer.preflight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from agent_r1.algorithms.registry import ADVANTAGES, POLICY_LOSSES
from agent_r1.config.environments import read_environments
from agent_r1.config.schema import Config, RewardConfig
from agent_r1.config.sft import SftConfig
from agent_r1.data.sources import require_source
from agent_r1.data.traces import TRACE_GENERATORS
from agent_r1.errors import AgentR1Error
from agent_r1.models.folder import check_folder
from agent_r1.registry import is_path
from agent_r1.reward.base import REWARDS
from agent_r1.reward.builtin import ingredients
from agent_r1.tool.registry import ENVS, TOOLS

LookUp = Callable[[], object]


def unknown_in_training(config: Config) -> list[str]:
    """What a training run would not find, each in words with the remedy."""
    return _failures(
        [
            *_algorithm(config),
            *_environments(config, "train_files", "val_files"),
            *_model(config.actor_rollout_ref.model.path),
        ]
    )


def unknown_in_evaluation(config: Config) -> list[str]:
    """What an evaluation would not find. The model of a server is the server's."""
    from_server = config.actor_rollout_ref.rollout.name == "openai"
    path = "" if from_server else config.actor_rollout_ref.model.path
    return _failures([*_environments(config, "val_files"), *_model(path)])


def unknown_in_chat(config: Config) -> list[str]:
    """What a conversation would not find; it reads no tasks."""
    return _failures(_environments(config))


def unknown_in_sft(config: SftConfig) -> list[str]:
    """What a cold start would not find."""
    files = [*config.data.train_files, *config.data.val_files]
    look_ups = [partial(require_source, file, TRACE_GENERATORS, imports=False) for file in files]
    return _failures([*look_ups, *_model(config.model.path)])


def _failures(look_ups: Iterable[LookUp]) -> list[str]:
    found: dict[str, None] = {}  # in order, each once
    for look_up in look_ups:
        try:
            look_up()
        except AgentR1Error as error:
            found[str(error)] = None
    return list(found)


def _algorithm(config: Config) -> Iterator[LookUp]:
    """Paths only: other names are compared with the known ones when a configuration is read."""
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    if is_path(estimator := config.algorithm.adv_estimator):
        yield partial(ADVANTAGES.look_up, estimator)
    if is_path(loss):
        yield partial(POLICY_LOSSES.look_up, loss)


def _environments(config: Config, *files: str) -> Iterator[LookUp]:
    """The names of every environment, and ``files`` of the run and of the entries of ``envs``."""
    envs = [each.config for each in read_environments(config)[0]]
    for own in envs:
        yield from _rewards(own.reward)
        yield partial(ENVS.look_up, own.tool.env)
        yield from (partial(TOOLS.look_up, tool) for tool in own.tool.tools)
    for data in (config.data, *(own.data for own in envs)):
        for kind in files:
            yield from (partial(require_source, f, imports=False) for f in getattr(data, kind))


def _rewards(reward: RewardConfig) -> Iterator[LookUp]:
    yield partial(REWARDS.look_up, reward.name)
    if reward.name == "weighted_sum":
        try:
            names = ingredients(reward.kwargs.get("rewards") or {})
        except AgentR1Error:
            return  # no names: said when it is made
        yield from (partial(REWARDS.look_up, name) for name in names)


def _model(path: str) -> Iterator[LookUp]:
    if path:
        yield partial(check_folder, path)
