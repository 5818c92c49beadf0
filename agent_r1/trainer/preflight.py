"""Everything that can be found wrong before anything is loaded, reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent_r1.algorithms.registry import bind, resolve_advantage, resolve_policy_loss
from agent_r1.config.environments import environment_configs
from agent_r1.config.schema import Config
from agent_r1.data.sources import require_source
from agent_r1.errors import AgentR1Error, ConfigError
from agent_r1.models.folder import check_folder
from agent_r1.reward.base import make_reward
from agent_r1.reward.builtin import check_ingredients
from agent_r1.tool.registry import ENVS, TOOLS


def check_before_loading(config: Config) -> None:
    """Look up every name and every file that training needs.

    Raises:
        AgentR1Error: the one mistake, or a :class:`ConfigError` that lists all of them.
    """
    mistakes = list(_mistakes(config))
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        listed = "\n".join(f"  - {mistake}" for mistake in mistakes)
        raise ConfigError(f"{len(mistakes)} mistakes:\n{listed}")


def _mistakes(config: Config) -> Iterator[AgentR1Error]:
    yield from _settings(config)
    for look_up in _look_ups(config):
        try:
            look_up()
        except AgentR1Error as error:
            yield error


def _settings(config: Config) -> Iterator[ConfigError]:
    if config.actor_rollout_ref.rollout.name == "openai":
        yield ConfigError(
            "actor_rollout_ref.rollout.name=openai cannot train: a server gives no "
            "log-probabilities of what it sampled and takes no new weights; use embedded"
        )
    envs = [config, *(each.config for each in environment_configs(config))]
    if config.trainer.test_freq > 0 and not any(each.data.val_files for each in envs):
        yield ConfigError(
            f"trainer.test_freq={config.trainer.test_freq} without data.val_files: there is "
            "nothing to validate on; give val_files, or set test_freq=-1"
        )
    if not any(each.data.train_files for each in envs):
        yield ConfigError(
            "data.train_files is empty; name a file, or a generator as in "
            "data.train_files=generator:arithmetic"
        )


def _look_ups(config: Config) -> Iterator[Callable[[], object]]:
    algorithm, loss = config.algorithm, config.actor_rollout_ref.actor.policy_loss
    yield lambda: bind(resolve_advantage(algorithm.adv_estimator), algorithm.adv_kwargs)
    yield lambda: resolve_policy_loss(loss.loss_mode)
    for each in environment_configs(config):
        yield from _environment_look_ups(each.config)
    if config.envs:
        yield from _file_look_ups(config)
    yield lambda: check_folder(config.actor_rollout_ref.model.path)


def _environment_look_ups(config: Config) -> Iterator[Callable[[], object]]:
    reward, tool = config.reward, config.tool
    yield lambda: make_reward(reward.name, **reward.kwargs)
    if reward.name == "weighted_sum":
        yield lambda: check_ingredients(reward.kwargs.get("rewards"))
    yield lambda: ENVS.get(tool.env)
    for name in tool.tools:
        yield lambda name=name: TOOLS.get(name)  # type: ignore[misc]  # a default binds the loop's
    yield from _file_look_ups(config)


def _file_look_ups(config: Config) -> Iterator[Callable[[], object]]:
    for source in (*config.data.train_files, *config.data.val_files):
        yield lambda source=source: require_source(source)  # type: ignore[misc]
