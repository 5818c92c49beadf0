import pytest
import torch

from agent_r1.config.sft import SftOptimConfig
from agent_r1.testing import tiny_model
from agent_r1.trainer.optim import build_optimizers, schedule


def factors(total, **settings):
    ratio = settings.pop("lr_decay_ratio", 1.0)
    factor = schedule(SftOptimConfig(**settings), total, ratio)
    return [factor(step) for step in range(total)]


def test_constant_after_warm_up():
    assert factors(5, lr_warmup_steps=2, lr_scheduler_type="constant") == [0.5, 1, 1, 1, 1]


def test_linear_falls_to_its_floor_over_the_last_part():
    expected = [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(10, lr_scheduler_type="linear", lr_decay_ratio=0.4) == pytest.approx(expected)
    low = factors(10, lr_scheduler_type="linear", lr_decay_ratio=0.4, min_lr_ratio=0.2)
    assert low[-1] == pytest.approx(0.2 + 0.8 * 0.25)


def test_cosine_is_half_way_down_in_the_middle():
    values = factors(100, lr_scheduler_type="cosine")
    assert values[50] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_a_warm_up_ratio_counts_from_all_steps():
    assert factors(10, lr_warmup_steps_ratio=0.2, lr_scheduler_type="constant")[:3] == [0.5, 1, 1]


def test_a_rate_is_a_function_of_finished_steps_and_not_of_history():
    model = tiny_model()
    optimizers = build_optimizers(model, SftOptimConfig(lr=0.1, lr_scheduler_type="linear"), 4)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert optimizers.step(2) == pytest.approx(0.05)
    assert optimizers.step(0) == pytest.approx(0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_and_leaves_tables_norms_and_head_to_adamw(tied):
    model = tiny_model(tie_word_embeddings=tied)
    built = build_optimizers(model, SftOptimConfig(name="muon", lr=0.02, lr_rest=0.003), 1)
    muon, adamw = built._optimizers
    assert isinstance(muon, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    ours = [names[id(p)] for g in muon.param_groups for p in g["params"]]
    rest = [names[id(p)] for g in adamw.param_groups for p in g["params"]]
    assert sorted(ours + rest) == sorted(names.values())
    assert all("proj" in name for name in ours)
    assert all("norm" in name or "embed" in name or "lm_head" in name for name in rest)
    assert [g["lr"] for g in muon.param_groups] == [0.02]
    assert {g["lr"] for g in adamw.param_groups} == {0.003}


def test_norms_do_not_decay():
    model = tiny_model()
    built = build_optimizers(model, SftOptimConfig(weight_decay=0.5), 1)
    (adamw,) = built._optimizers
    decays = {p.ndim: g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    assert decays == {2: 0.5, 1: 0.0}
