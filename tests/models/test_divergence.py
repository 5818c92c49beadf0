"""Reverse KL to a teacher: by hand, against plain softmax, and through a model."""

import copy
import itertools
import math

import pytest
import torch

from agent_r1.models.divergence import TeacherStates, TopTokens, reverse_kl, top_tokens
from agent_r1.models.head import Head
from agent_r1.models.load import enable_packing
from agent_r1.models.logprobs import head_of, predictions, token_logprobs
from agent_r1.testing import tiny_model

IDENTITY = Head(torch.eye(4, dtype=torch.float64))


def test_by_hand():
    """Student (1/2, 1/4, 1/8, 1/8), teacher (1/4, 1/4, 1/4, 1/4): ln 2 (1/2 - 1/8 - 1/8)."""
    student = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    teacher = TeacherStates(torch.zeros(1, 4, dtype=torch.float64), IDENTITY)
    found = reverse_kl(student, IDENTITY, teacher)
    assert found.tolist() == pytest.approx([0.25 * math.log(2.0)])


def test_the_tokens_that_are_not_told_count_as_one_by_hand():
    """Of the teacher (1/2, 1/4, 1/8, 1/8) two are told; the student has (1/4, 1/4 | 1/2)."""
    student = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    told = TopTokens(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).double().log())
    found = reverse_kl(student, IDENTITY, told)
    expected = 0.25 * math.log(0.5) + 0.0 + 0.5 * math.log(2.0)
    assert found.tolist() == pytest.approx([expected])


def case(softcap=None, bias=False):
    draw = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    hidden = make(7, 5).requires_grad_()
    weight = make(11, 5).requires_grad_()
    head = Head(weight, make(11) if bias else None, 0.7, softcap)
    return hidden, head, make(7, 6), Head(make(11, 6))


def plain(hidden, head, teacher, teacher_head, temperature):
    def logp(states, layer):
        logits = layer.scale * states @ layer.weight.t()
        logits = logits if layer.bias is None else logits + layer.bias
        if layer.softcap is not None:
            logits = layer.softcap * torch.tanh(logits / layer.softcap)
        return torch.log_softmax(logits / temperature, -1)

    mine = logp(hidden, head)
    return (mine.exp() * (mine - logp(teacher, teacher_head))).sum(-1)


@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
@pytest.mark.parametrize(("softcap", "bias"), [(None, False), (2.0, True)])
def test_values_and_gradients_are_those_of_whole_logits(chunk_rows, softcap, bias):
    hidden, head, teacher, teacher_head = case(softcap, bias)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    expected = plain(hidden, head, teacher, teacher_head, 1.3)
    wanted = torch.autograd.grad((expected * weights).sum(), (hidden, head.weight))
    view = TeacherStates(teacher, teacher_head)
    found = reverse_kl(hidden, head, view, 1.3, chunk_rows=chunk_rows)
    gradients = torch.autograd.grad((found * weights).sum(), (hidden, head.weight))
    assert torch.allclose(found, expected)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, want)


def test_more_tokens_come_closer_and_all_are_exact():
    hidden, head, teacher, teacher_head = case()
    hidden = hidden.detach()
    head = Head(head.weight.detach(), None, head.scale)
    exact = reverse_kl(hidden, head, TeacherStates(teacher, teacher_head))
    found = [
        reverse_kl(hidden, head, top_tokens(teacher, teacher_head, k, chunk_rows=2))
        for k in (1, 4, 8, 11, 50)
    ]
    for fewer, more in itertools.pairwise(found):
        assert bool((fewer <= more + 1e-6).all())
    assert float((exact - found[0]).max()) > 0.1
    assert torch.allclose(found[3], exact, atol=1e-6) and torch.allclose(found[4], exact, atol=1e-6)


def test_an_empty_batch_is_a_function_of_the_weights():
    hidden, head, teacher, teacher_head = case()
    found = reverse_kl(hidden[:0], head, TeacherStates(teacher[:0], teacher_head))
    found.sum().backward()
    assert found.shape == (0,) and bool((hidden.grad == 0).all())


def test_only_wanted_tokens_diverge():
    torch.manual_seed(0)
    plain_models = tiny_model(), tiny_model(seed=1)
    student, teacher = (copy.deepcopy(m) for m in plain_models)
    for made in (student, teacher):
        enable_packing(made)
    ids, lengths = torch.randint(1, 50, (2, 9)), torch.tensor([9, 6])
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 4:7] = mask[1, 2] = True
    at = predictions(teacher, ids, lengths, mask=mask)
    view = TeacherStates(at.scatter(at.hidden), head_of(teacher))
    found = token_logprobs(student, ids, lengths, mask=mask, teacher=view).divergence
    full = [m(ids).logits.log_softmax(-1) for m in plain_models]
    expected = (full[0].exp() * (full[0] - full[1])).sum(-1).roll(1, 1)
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)
    assert bool((found[mask] > 1e-4).all())
    assert bool((found[~mask] == 0).all())
