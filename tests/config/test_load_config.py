"""Reading a configuration: sources and their precedence, and every kind of mistake."""

import pytest

from agent_r1.config import Config, ConfigWarning, load_config, to_yaml
from agent_r1.config.load import OVERRIDES_VARIABLE, load_section
from agent_r1.config.sft import SftConfig
from agent_r1.errors import ConfigError


def load(*overrides, file=None, env=""):
    return load_config(file, overrides, environ={OVERRIDES_VARIABLE: env})


def message(*overrides, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load(*overrides, **kwargs)
    return str(caught.value)


def test_the_defaults_are_a_valid_configuration():
    assert load() == Config()


def test_a_file_states_only_what_differs(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("trainer:\n  seed: 5\nactor_rollout_ref:\n  rollout:\n    stop: ['</code>']\n")
    config = load(file=file)
    assert config.trainer.seed == 5
    assert config.actor_rollout_ref.rollout.stop == ("</code>",)
    assert config.data == Config().data


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("trainer: {seed: 1, total_epochs: 1, save_freq: 1}\n")
    config = load("trainer.seed=3", file=file, env="trainer.seed=2 trainer.total_epochs=2")
    assert (config.trainer.seed, config.trainer.total_epochs, config.trainer.save_freq) == (3, 2, 1)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_hydras_spellings_of_a_setting_are_plain_settings(prefix):
    assert load(f"{prefix}trainer.seed=3").trainer.seed == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["</code>"]', ("</code>",)),
        ("[</code>]", ("</code>",)),
        ("</code>", ("</code>",)),
        ('["a,b", "c = d"]', ("a,b", "c = d")),
        ('["\\n```\\n"]', ("\n```\n",)),
        ("[]", ()),
        ("", ()),
        ("null", ()),
    ],
)
def test_a_value_is_yaml(text, value):
    config = load(f"actor_rollout_ref.rollout.stop={text}")
    assert config.actor_rollout_ref.rollout.stop == value


@pytest.mark.parametrize("text", ["1e-6", "1.0e-06", "0.000001"])
def test_numbers_may_be_written_in_any_usual_way(text):
    assert load(f"actor_rollout_ref.actor.optim.lr={text}").actor_rollout_ref.actor.optim.lr == 1e-6


def test_sizes_may_carry_a_unit():
    assert load("sandbox.limits.memory_bytes=512MiB").sandbox.limits.memory_bytes == 512 << 20


def test_a_number_is_a_fine_name():
    assert load("trainer.experiment_name=7").trainer.experiment_name == "7"


def test_free_mappings_take_any_key_and_are_merged(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("tool: {env_kwargs: {a: 1, b: {c: 2}}}\n")
    config = load("tool.env_kwargs.b.d=3", file=file)
    assert config.tool.env_kwargs == {"a": 1, "b": {"c": 2, "d": 3}}


def test_a_reference_means_the_final_value_of_the_other_key(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "trainer:\n  default_local_dir: out/${trainer.project_name}/${trainer.experiment_name}\n"
    )
    config = load("trainer.experiment_name=x", file=file)
    assert str(config.trainer.run_dir) == "out/agent_r1/x"


def test_a_reference_to_nothing_is_an_error():
    assert "cannot be resolved" in message("trainer.default_local_dir=${nope.nope}")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("trainer.totel_epochs", "trainer.total_epochs"),
        ("data.train_file", "data.train_files"),
        ("actor_rollout_ref.rollout.temprature", "actor_rollout_ref.rollout.temperature"),
        ("rollout.n", "actor_rollout_ref.rollout.n"),
        ("lr", "actor_rollout_ref.actor.optim.lr"),
        ("tool.max_turn", "tool.max_turns"),
        ("algorithm.adv_estimater", "algorithm.adv_estimator"),
        ("trainer.seed.more", "trainer.seed"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_key_value_origin_and_the_nearest(wrong, meant):
    text = message(f"{wrong}=17")
    for part in (f"{wrong}=17", "command line", f"did you mean {meant}?"):
        assert part in text


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("trainer: {sead: 1}\n")
    text = message(file=file)
    assert f"trainer.sead=1 ({file})" in text and "trainer.seed" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.seed=x", "a whole number of at least 0"),
        ("trainer.seed=-1", "a whole number of at least 0"),
        ("trainer.seed=1.5", "a whole number of at least 0"),
        ("actor_rollout_ref.actor.optim.lr=fast", "a number above 0"),
        ("actor_rollout_ref.actor.optim.lr=.nan", "a number above 0"),
        ("actor_rollout_ref.rollout.top_p=1.5", "a number above 0 and of at most 1"),
        ("actor_rollout_ref.rollout.stop_token_ids=[a]", "a list of whole numbers"),
        ("actor_rollout_ref.actor.optim.betas=[0.9]", "a list of 2 numbers"),
        ("actor_rollout_ref.actor.loss_agg_mode=mean", "one of token-mean, seq-mean"),
        ("tool.env_kwargs=3", "a mapping"),
        ("data.shuffle=perhaps", "true or false"),
        ("sandbox.limits.memory_bytes=much", "a number of bytes, such as 512MiB"),
        ("data.seed=x", "a whole number, or null"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_key_value_and_what_is_expected(override, expected):
    text = message(override)
    key, _, value = override.partition("=")
    assert f"{key}={value}" in text
    assert f"is not {expected}" in text
    assert "command line" in text and "the default is" in text


def test_all_mistakes_are_reported_together():
    text = message("trainer.sead=1", "data.train_filez=x", "tool.max_turn=1")
    assert text.startswith("3 mistakes:")
    assert all(name in text for name in ("trainer.seed", "data.train_files", "tool.max_turns"))


def test_a_section_cannot_be_set_to_a_value():
    text = message("trainer=5")
    assert "trainer is a section" in text and "trainer.total_epochs" in text


@pytest.mark.parametrize("word", ["trainer.seed", "=3", "+=3"])
def test_a_word_without_key_or_equals_sign_is_an_error(word):
    assert "write dotted.key=value" in message(word)


def test_removing_a_key_is_refused_with_the_way_to_do_it():
    assert "set trainer.total_training_steps=null" in message("~trainer.total_training_steps=1")


def test_broken_yaml_in_an_override_shows_how_to_quote():
    text = message('actor_rollout_ref.rollout.stop=["</code>"')
    assert "single quotes" in text and "not valid YAML" in text


def test_an_unclosed_quote_in_the_environment_is_an_error():
    assert "unclosed quote" in message(env="trainer.seed='3")


def test_a_missing_file_is_an_error(tmp_path):
    assert "no configuration file" in message(file=tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_must_hold_sections(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert str(file) in message(file=file)


def test_a_file_that_is_no_yaml_is_an_error(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("trainer: [1\n")
    assert "not valid YAML" in message(file=file)


def test_an_empty_file_means_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert load(file=file) == Config()


def test_a_printed_configuration_reads_back_to_the_same(tmp_path):
    config = load(
        "actor_rollout_ref.rollout.stop='[\"</code>\"]'",
        "sandbox.limits.memory_bytes=2GiB",
        "actor_rollout_ref.actor.autocast=off",
        "tool.env_kwargs={a: [1, {b: null}]}",
        "actor_rollout_ref.actor.optim.lr=1e-6",
    )
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load(file=file) == config


def test_what_must_be_given_is_asked_for_with_an_example():
    with pytest.raises(ConfigError, match=r"data\.train_files is not set.*data\.train_files=x\.pq"):
        load_config(needs=lambda config: {"data__train_files": "x.pq"})
    load_config(None, ["data.train_files=a.parquet"], needs=lambda _: {"data__train_files": "x.pq"})


def test_settings_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        Config().trainer.seed = 3


def test_the_word_off_is_no_boolean_where_it_is_a_choice():
    assert load("actor_rollout_ref.actor.autocast=off").actor_rollout_ref.actor.autocast == "off"
    assert load_section(SftConfig, None, ["trainer.autocast=off"]).trainer.autocast == "off"
    assert load("sandbox.session=none").sandbox.session == "none"
    assert (
        load("algorithm.rollout_correction.rollout_is=null").algorithm.rollout_correction.rollout_is
        == "none"
    )


def test_minus_one_means_all():
    assert load("data.train_max_samples=-1").data.train_max_samples is None


def test_a_remark_is_a_warning_with_the_way_out():
    with pytest.warns(ConfigWarning, match="use top_p=1 and top_k=0"):
        load("actor_rollout_ref.rollout.top_p=0.9")


def test_keys_of_a_mapping_may_contain_dots_and_are_gathered_from_all_places(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("tool: {tool_kwargs: {'shop.py:PriceList': {currency: EUR, strict: true}}}")
    settings = [
        "tool.tool_kwargs={'shop.py:PriceList': {currency: USD}}",
        "tool.tool_kwargs.python.session=true",
        "tool.tool_kwargs.python.last_expression=true",
    ]
    assert load_config(file, settings, environ={}).tool.tool_kwargs == {
        "shop.py:PriceList": {"currency": "USD", "strict": True},
        "python": {"session": True, "last_expression": True},
    }


def test_every_kind_of_mistake_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(
            None,
            [
                "nonsense",
                "trainer.sead=1",
                "trainer.total_epochs=abc",
                "algorithm.adv_estimator=grop",
                "data.train_batch_size=6",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            ],
            environ={"AGENT_R1_OVERRIDES": "~reward.name"},
        )
    first, *mistakes = str(caught.value).splitlines()
    assert first == "6 mistakes:"
    for expected, mistake in zip(
        [
            "'~reward.name' (AGENT_R1_OVERRIDES): keys cannot be removed",
            "'nonsense' (command line) is no setting",
            "unknown key trainer.sead=1 (command line): did you mean trainer.seed?",
            "trainer.total_epochs=abc (command line) is not a whole number above 0",
            "algorithm.adv_estimator=grop is unknown; did you mean grpo?",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4 does not divide data.train_batch_size=6",
        ],
        mistakes,
        strict=True,
    ):
        assert expected in mistake


def test_no_mistake_is_made_up_from_the_default_of_a_wrong_value():
    """With the default batch of 64 prompts, 40 would not divide it; 80 may have been meant."""
    with pytest.raises(ConfigError) as caught:
        load_config(
            None,
            ["data.train_batch_size=8O", "actor_rollout_ref.actor.ppo_mini_batch_size=40"],
            environ={},
        )
    assert "ppo_mini_batch_size" not in str(caught.value)
