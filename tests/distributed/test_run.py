"""What several processes are refused before any of them loads a weight."""

import pytest

from agent_r1.config.load import load_config
from agent_r1.distributed.run import check_optimizers
from agent_r1.errors import ConfigError

MUON = "actor_rollout_ref.actor.optim.name=muon"
CRITIC = "critic.optim.name=muon"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ([MUON], "actor_rollout_ref.actor.optim.name"),
        ([CRITIC, "algorithm.adv_estimator=gae"], "critic.optim.name"),
        (["actor_rollout_ref.actor.optim.name=adamw_8bit"], "actor_rollout_ref.actor.optim.name"),
    ],
)
def test_what_is_another_optimizer_on_shards_is_refused_by_name(settings, key):
    with pytest.raises(ConfigError, match=f"{key}=(muon orthogonalises|adamw_8bit keeps)"):
        check_optimizers(load_config(None, settings, environ={}))


def test_what_is_not_used_is_not_refused():
    check_optimizers(load_config(None, [CRITIC, "algorithm.adv_estimator=grpo"], environ={}))
