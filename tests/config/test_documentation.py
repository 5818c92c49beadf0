"""Every setting is documented, and what is generated from the schema is fresh."""

from pathlib import Path

import pytest

from agent_r1.config import Config, load_config
from agent_r1.config.docs import YAML_PATH, explain, render_page, render_yaml
from agent_r1.config.keys import leaves, sections
from agent_r1.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
REFRESH = "stale: run 'python -m agent_r1.config.docs' in the repository's root"


def test_the_page_is_fresh():
    assert PAGE.read_text() == render_page(), REFRESH


def test_the_yaml_file_is_fresh():
    assert YAML_PATH.read_text() == render_yaml(), REFRESH


def test_the_yaml_file_states_the_defaults():
    assert load_config(YAML_PATH, environ={}) == Config()


@pytest.mark.parametrize("leaf", list(leaves().values()), ids=lambda leaf: leaf.key)
def test_every_setting_is_documented(leaf):
    assert leaf.description.endswith("."), f"{leaf.key}: {leaf.description!r}"
    if leaf.key.endswith("_s") or leaf.key.endswith("_seconds"):
        assert "econds" in leaf.description


@pytest.mark.parametrize(("name", "doc"), list(sections().items()))
def test_every_section_is_documented(name, doc):
    assert doc and "BaseModel" not in doc


def test_the_configuration_stays_small():
    assert len(leaves()) <= 250


def test_the_tutorials_names_exist():
    for name in (
        "actor_rollout_ref.rollout.stop",
        "actor_rollout_ref.model.path",
        "data.train_files",
        "tool.env",
        "trainer.logger",
    ):
        assert name in leaves()


def test_one_setting_a_section_and_everything_can_be_explained():
    assert "\n".join(explain("trainer.seed")).startswith("trainer.seed = 0\n    Seed of")
    assert len(list(explain("algorithm.kl_ctrl"))) == 8
    assert len(list(explain(None))) == 2 * len(leaves())
    with pytest.raises(ConfigError, match=r"did you mean trainer\.seed"):
        list(explain("trainer.sead"))
