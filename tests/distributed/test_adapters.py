"""Adapters on sharded models: what leaves the ranks is what one process would send."""

import pytest

from agent_r1.rollout.engine import AdapterSource
from agent_r1.rollout.engines.vllm_weights import FileSender

from . import cases
from .cases import Case, largest_difference

LORA = Case(lora=True, actor={"use_kl_loss": True, "kl_loss_coef": 0.1})


def sent(source, folder):
    """What a vLLM server would be sent: bytes of the first version and of the second."""
    sender = FileSender(folder)
    first = sender.pack(source, 1)
    sender.keep(first)
    return first.size, sender.pack(source, 2).size


def contents(source):
    adapters = {n: {"a": x.a, "b": x.b, "scale": x.scale} for n, x in source.adapters().items()}
    return {
        "adapters": adapters,
        "base": dict(source.base()),
        "checkpoint": dict(source.checkpoint()),
        "parameters": dict(source.parameters()),
    }


def compared(case, worker, folder):
    alone = cases.one_process(case)
    untouched = {name: weight.clone() for name, weight in alone.weights.base()}
    for one in (worker, alone):
        cases.train(case, one, 3)
    assert isinstance(worker.weights, AdapterSource)
    found, expected = contents(worker.weights), contents(alone.weights)
    assert found["adapters"] or not case.lora
    changed = largest_difference(found["checkpoint"], untouched)
    apart = {part: largest_difference(found[part], expected[part]) for part in found}
    base = largest_difference(found["base"], untouched)
    return apart, base, changed, sent(worker.weights, folder), sent(alone.weights, folder)


def kept(case, worker):
    """How far weights that were handed out moved in an update."""
    handed = dict(worker.weights.parameters())
    copies = {name: weight.clone() for name, weight in handed.items()}
    cases.train(case, worker, 1)
    moved = largest_difference(copies, dict(worker.weights.parameters()))
    return largest_difference(copies, handed), moved


def kept_on_ranks(ranks, case):
    return cases.together(ranks, case, kept)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("lora", [False, True])
def test_what_was_handed_out_is_not_changed_by_later_updates(two, size, lora):
    changed, moved = two.run(kept_on_ranks, Case(fsdp_size=size, lora=lora))[0]
    assert changed == 0.0 and moved > 1e-4


def on_ranks(ranks, case, folder):
    return cases.together(ranks, case, compared, folder)


def test_adapters_of_ranks_are_sent_alone_and_are_those_of_one_process(two, tmp_path):
    apart, base, changed, sizes, expected = two.run(on_ranks, LORA, tmp_path)[0]
    assert base == 0.0 and changed > 1e-4
    assert all(value <= 1e-5 for value in apart.values()), apart
    assert sizes == expected
    assert sizes[1] < sizes[0] / 3


@pytest.mark.parametrize("tied", [True, False])
def test_without_adapters_the_whole_policy_is_sent_each_time(two, tmp_path, tied):
    case = Case(tied=tied)
    apart, _, changed, sizes, expected = two.run(on_ranks, case, tmp_path)[0]
    assert apart["adapters"] == 0.0 and changed > 1e-4
    assert apart["checkpoint"] <= 1e-5 and apart["parameters"] <= 1e-5
    assert sizes == expected and sizes[0] == sizes[1]
