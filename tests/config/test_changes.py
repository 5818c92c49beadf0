"""A continued run knows which settings it changes."""

import pytest

from agent_r1.config.changes import Change, changes_since, continued_changes
from agent_r1.config.load import load_config, to_yaml
from agent_r1.errors import ConfigError


def stored(tmp_path, *overrides):
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(None, overrides, environ={})))
    return tmp_path / "checkpoints" / "step-000003"


def test_a_change_has_both_values(tmp_path):
    stored(tmp_path, "trainer.seed=1")
    now = load_config(None, ["trainer.seed=2", "data.train_batch_size=8"], environ={})
    assert changes_since(tmp_path / "config.yaml", now) == (
        Change("data.train_batch_size", 64, 8),
        Change("trainer.seed", 1, 2),
    )
    assert str(Change("trainer.seed", None, 2)) == "trainer.seed: null -> 2"


def test_what_concerns_the_command_alone_is_not_told(tmp_path):
    checkpoint = stored(tmp_path)
    now = load_config(None, ["trainer.accept_changes=true"], environ={})
    assert continued_changes(checkpoint, now, accepted=True) == ()


@pytest.mark.parametrize(
    "setting",
    ["tool.env=nous", "tool.max_turns=3", "reward.name=numeric", "actor_rollout_ref.model.path=b"],
)
def test_another_environment_reward_or_model_needs_a_word(tmp_path, setting):
    checkpoint = stored(tmp_path)
    now = load_config(None, [setting], environ={})
    with pytest.raises(ConfigError, match=r"trainer\.accept_changes=true") as caught:
        continued_changes(checkpoint, now, accepted=False)
    assert setting.partition("=")[0] in str(caught.value)
    changed = continued_changes(checkpoint, now, accepted=True)
    assert [c.key for c in changed] == [setting.partition("=")[0]]


@pytest.mark.parametrize("setting", ["reward.timeout_s=5", "tool.timeout_s=5", "trainer.seed=9"])
def test_other_changes_need_none(tmp_path, setting):
    now = load_config(None, [setting], environ={})
    assert len(continued_changes(stored(tmp_path), now, accepted=False)) == 1


def test_without_a_checkpoint_or_its_settings_there_is_nothing_to_compare(tmp_path):
    config = load_config(None, ["tool.env=nous"], environ={})
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    assert continued_changes(None, config, accepted=False) == ()
    assert continued_changes(checkpoint, config, accepted=False) == ()
    (tmp_path / "config.yaml").write_text("of: another time\n")
    assert continued_changes(checkpoint, config, accepted=False) == ()
