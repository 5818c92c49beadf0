import subprocess
import sys

import pytest
import torch

from agent_r1.algorithms import registry
from agent_r1.algorithms.advantages import grpo
from agent_r1.algorithms.episodes import AdvantageResult
from agent_r1.algorithms.losses import PolicyLossInputs, PolicyLossTerms, ppo
from agent_r1.algorithms.registry import (
    ADVANTAGES,
    POLICY_LOSSES,
    bind,
    register_advantage,
    register_policy_loss,
    resolve_advantage,
    resolve_policy_loss,
)
from agent_r1.errors import ConfigError, RegistryError


def test_every_advertised_name_resolves_to_a_function_of_that_name():
    for name in ADVANTAGES.names():
        assert resolve_advantage(name).__name__ == name
    for name in POLICY_LOSSES.names():
        assert resolve_policy_loss(name).__name__ == ("ppo" if name == "vanilla" else name)


def test_names_of_the_wider_world_are_known():
    assert {
        "gae",
        "grpo",
        "rloo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "remax",
    } < set(ADVANTAGES.names())
    assert {"vanilla", "gspo", "cispo"} < set(POLICY_LOSSES.names())


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(RegistryError, match="did you mean 'grpo'"):
        resolve_advantage("gropo")
    with pytest.raises(RegistryError, match="did you mean 'cispo'"):
        resolve_policy_loss("cipso")


def test_users_register_functions_of_their_own(monkeypatch, batch):
    monkeypatch.setattr(registry.ADVANTAGES, "_entries", {})
    monkeypatch.setattr(registry.POLICY_LOSSES, "_entries", {})

    @register_advantage("raw_score")
    def raw_score(inputs, *, scale=1.0):
        return AdvantageResult(scale * inputs.reward[:, None] * inputs.loss_mask)

    @register_policy_loss("linear")
    def linear(inputs):
        none = torch.zeros_like(inputs.loss_mask)
        return PolicyLossTerms(-inputs.advantages * inputs.logprobs, none, none, none, none)

    inputs = batch([".0"], [3.0])
    assert bind(resolve_advantage("raw_score"), {"scale": 2.0})(inputs).advantages[0, 1] == 6.0
    assert resolve_policy_loss("linear") is linear


def test_a_taken_name_cannot_be_taken_again():
    with pytest.raises(RegistryError, match="grpo"):

        @register_advantage("grpo")
        def mine(inputs):
            raise NotImplementedError


def test_a_dotted_path_needs_no_registration(tmp_path, monkeypatch, batch):
    (tmp_path / "their_credit.py").write_text(
        "from agent_r1.algorithms.episodes import AdvantageResult\n"
        "def ones(inputs, *, gamma=1.0):\n"
        "    return AdvantageResult(gamma * inputs.loss_mask.double())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    estimator = bind(resolve_advantage("their_credit:ones"), shared={"gamma": 0.5})
    assert estimator(batch([".00"], [1.0])).advantages.tolist() == [[0.0, 0.5, 0.5]]
    assert resolve_advantage("agent_r1.algorithms.advantages.grpo") is grpo


def test_a_path_to_nothing_is_an_error_of_ours():
    with pytest.raises(RegistryError, match="no_such_module"):
        resolve_advantage("no_such_module:f")
    with pytest.raises(RegistryError, match="grppo"):
        resolve_advantage("agent_r1.algorithms.advantages:grppo")


def test_an_option_meant_for_a_function_must_be_one_of_its_own():
    with pytest.raises(ConfigError, match="did you mean 'norm_adv_by_std_in_grpo'"):
        bind(grpo, {"norm_adv_by_std": False})
    with pytest.raises(ConfigError, match="clip_ratio_low"):
        bind(ppo, {"gamma": 1.0})


def test_shared_settings_reach_those_who_take_them():
    bound = bind(ppo, {"clip_ratio_c": None}, {"clip_ratio_high": 0.28, "gamma": 0.9})
    assert bound.keywords == {"clip_ratio_high": 0.28, "clip_ratio_c": None}
    one = torch.ones(1, 1)
    terms = bound(PolicyLossInputs(one * 0.5, one * 0, one, one.bool()))
    assert terms.loss.item() == pytest.approx(-1.28)


def test_own_options_win_over_shared_ones():
    assert bind(ppo, {"clip_ratio_low": 0.1}, {"clip_ratio_low": 0.3}).keywords == {
        "clip_ratio_low": 0.1
    }


def test_listing_names_does_not_import_torch():
    code = (
        "import sys; from agent_r1.algorithms.registry import ADVANTAGES, POLICY_LOSSES;"
        "ADVANTAGES.names(); POLICY_LOSSES.names(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_needs_no_import_path_and_a_module_beside_it_is_told_of_the_file_form(
    tmp_path, monkeypatch
):
    file = tmp_path / "cred_of_mine.py"
    file.write_text("def best(inputs):\n    return 'mine'\n")
    assert resolve_advantage(f"{file}:best")(None) == "mine"
    monkeypatch.chdir(tmp_path)
    assert resolve_advantage("cred_of_mine.py:best")(None) == "mine"
    with pytest.raises(RegistryError, match=r"A file is given as cred_of_mine\.py:NAME"):
        resolve_advantage("cred_of_mine:best")


def test_looking_up_imports_nothing_and_says_what_finding_says(tmp_path):
    file = tmp_path / "fails.py"
    file.write_text("raise RuntimeError('imported')")
    for found in ("grpo", f"{file}:best", "agent_r1.algorithms.absent:best"):
        ADVANTAGES.look_up(found)
    for name in ("grop", f"{tmp_path / 'absent.py'}:best", "no_such_module:f", "x:", "a."):
        with pytest.raises(RegistryError) as told:
            ADVANTAGES.look_up(name)
        with pytest.raises(RegistryError) as raised:
            ADVANTAGES.get(name)
        assert str(told.value) == str(raised.value)
