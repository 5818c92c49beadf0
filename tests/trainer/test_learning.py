"""The whole stack learns a behaviour that takes two tool calls, and only with its mask.

Engine, agent loop, batch, worker and configuration are those of any run; the world, its
tokenizer and its random network are in ``relay.py``.
"""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.trainer.build import build_parts, train
from agent_r1.trainer.rl import RLTrainer
from agent_r1.types import Trajectory

from . import relay

RELAY = Path(relay.__file__)
ESTIMATORS = ("gae", "grpo", "reinforce_plus_plus", "rloo")
STEPS, ENDS = 45, 5


@pytest.fixture(scope="module")
def relay_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relay-model")
    relay.model().save_pretrained(folder)
    relay.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def config_of(relay_model, tmp_path):
    """``make(estimator)``: the same run for every estimator."""

    def make(estimator):
        settings = [
            f"algorithm.adv_estimator={estimator}",
            f"data.train_files=generator:{RELAY}:tasks",
            "data.train_batch_size=8",
            "data.max_prompt_length=4",
            "data.max_response_length=32",
            f"actor_rollout_ref.model.path={relay_model}",
            "actor_rollout_ref.actor.optim.lr=5e-3",
            "actor_rollout_ref.actor.ppo_epochs=2",
            "actor_rollout_ref.rollout.n=8",
            f"actor_rollout_ref.rollout.stop_token_ids={list(range(len(relay.ALPHABET)))}",
            "critic.optim.lr=1e-2",
            f"reward.name={RELAY}:progress",
            f"tool.env={RELAY}:RelayEnv",
            "tool.tools=[]",
            "tool.max_turns=3",
            f"trainer.total_training_steps={STEPS}",
            "trainer.logger=[]",
            "trainer.device=cpu",
            f"trainer.default_local_dir={tmp_path / 'run'}",
        ]
        return load_config(None, settings, environ={})

    return make


@dataclasses.dataclass(frozen=True)
class Curve:
    """What ``metrics.jsonl`` says of a run."""

    first: float
    last: float
    engine_error: float
    """Largest mean difference between the engine's and the trainer's log-probabilities."""

    @property
    def learned(self):
        return self.first < 0.3 and self.last > 0.9


def curve_of(config):
    text = (config.trainer.run_dir / "metrics.jsonl").read_text()
    steps = [json.loads(line) for line in text.splitlines()]
    rewards = [step["critic/rewards/mean"] for step in steps]
    assert len(rewards) == STEPS
    return Curve(
        first=sum(rewards[:ENDS]) / ENDS,
        last=sum(rewards[-ENDS:]) / ENDS,
        engine_error=max(step["training/logprob_diff_mean"] for step in steps),
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_tool_calls_are_learned(config_of, estimator):
    config = config_of(estimator)
    train(config)
    curve = curve_of(config)
    assert curve.learned, curve
    assert curve.engine_error < 1e-4


# --- the mask, broken ----------------------------------------------------------------------


class Unmasked(Trajectory):
    """A trajectory that claims that the model sampled all of it but the prompt."""

    __slots__ = ()

    def samples(self):
        return tuple(_unmask(sample) for sample in super().samples())


def _unmask(sample):
    """Tool tokens count as the end of the turn that they answer."""
    turns = list(sample.turn_index)
    for t in range(1, len(turns)):
        turns[t] = max(turns[t], turns[t - 1])
    mask = tuple(int(turn >= 0) for turn in turns)
    return dataclasses.replace(sample, loss_mask=mask, turn_index=tuple(turns))


class UnmaskedGroups:
    """A run's own group runner, whose trajectories come back unmasked."""

    def __init__(self, groups):
        self._groups = groups
        self.close = groups.close

    def rollouts(self, *args, **options):
        rollouts = self._groups.rollouts(*args, **options)
        following = rollouts.next

        async def unmasked():
            finished = await following()
            return dataclasses.replace(
                finished, trajectories=tuple(map(_without_mask, finished.trajectories))
            )

        rollouts.next = unmasked
        return rollouts


def _without_mask(trajectory):
    names = [field.name for field in dataclasses.fields(Trajectory)]
    return Unmasked(**{name: getattr(trajectory, name) for name in names})


def train_unmasked(config):
    """``train`` but for the mask."""
    with ExitStack() as stack:
        parts, _ = build_parts(config, stack)
        broken = dataclasses.replace(parts, groups=UnmaskedGroups(parts.groups))
        RLTrainer(config, broken).fit()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nobody_learns_them_from_the_tools_tokens(config_of, estimator):
    config = config_of(estimator)
    train_unmasked(config)
    curve = curve_of(config)
    assert not curve.learned
    assert curve.first < 0.3 and curve.last < 0.7, curve
    assert curve.engine_error > 0.1  # and the log of every step would have told
