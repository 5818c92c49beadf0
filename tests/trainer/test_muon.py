"""Muon in float32 against torch's, whose iteration is in bfloat16."""

import copy

import pytest
import torch

from agent_r1.trainer.muon import Float32Muon, orthogonal

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix, COEFFICIENTS, 5, 1e-7)
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and float(values.min()) > 0.3 and float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ found @ right.T  # diagonal if both have the same singular vectors
    assert torch.allclose(inner, torch.diag(torch.diagonal(inner)), atol=1e-4)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_three_steps_are_torchs_within_the_precision_of_bfloat16(shape):
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(*shape, generator=draw)
    options = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine, reference = Float32Muon([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(3):
        gradient = torch.randn(*shape, generator=draw)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).detach().norm()
    assert float((ours - theirs).detach().norm() / moved) < 0.03
    one, other = (opt.state_dict()["state"][0] for opt in (mine, reference))
    assert one.keys() == other.keys()
    assert torch.allclose(one["momentum_buffer"], other["momentum_buffer"], atol=1e-6)


def test_a_state_of_torchs_goes_on_here():
    weight = torch.nn.Parameter(torch.eye(4))
    weight.grad = torch.ones(4, 4)
    before = torch.optim.Muon([weight], lr=0.1)
    before.step()
    after = Float32Muon([weight], lr=0.1)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    buffer = after.state[weight]["momentum_buffer"]
    assert torch.equal(buffer, before.state[weight]["momentum_buffer"])
