import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agent_r1.models.head import (
    Head,
    _logit_gradient,
    _narrow_gradient,
    _statistics,
    linear_logprobs,
)

ROWS, WIDTH, VOCABULARY = 11, 6, 17


def parts(dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    hidden, weight = draw(ROWS, WIDTH), draw(VOCABULARY, WIDTH)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    bias = draw(VOCABULARY) if options.pop("bias", False) else None
    return hidden, targets, Head(weight, bias, **options)


def plain(hidden, targets, head, temperature):
    """The definition, with all logits at once."""
    logits = head.scale * hidden @ head.weight.t()
    if head.bias is not None:
        logits = logits + head.bias
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_p = (logits / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), entropy


VARIANTS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "bias": True},
    {"softcap": 3.0, "temperature": 0.6},
    {"scale": 0.25, "bias": True, "softcap": 2.0, "temperature": 1.4},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 4, 64])
def test_values_and_gradients_equal_plain_autograd(options, chunk_rows):
    options = dict(options)
    temperature = options.pop("temperature", 1.0)
    hidden, targets, head = parts(**options)
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    mix = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(pair):
        return torch.autograd.grad((mix[0] * pair[0] + mix[1] * pair[1]).sum(), leaves)

    ours = linear_logprobs(
        hidden, targets, head, temperature, with_entropy=True, chunk_rows=chunk_rows
    )
    theirs = plain(hidden, targets, head, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-10, atol=1e-12)


def test_gradcheck_of_each_output_alone():
    hidden, targets, head = parts(bias=True, softcap=3.0)

    def logprobs(h, w, b):
        return linear_logprobs(h, targets, Head(w, b, 1.0, 3.0), 0.8, chunk_rows=4)[0]

    def entropy(h, w, b):
        head = Head(w, b, 1.0, 3.0)
        return linear_logprobs(h, targets, head, 0.8, with_entropy=True, chunk_rows=4)[1]

    inputs = (hidden, head.weight, head.bias)
    assert torch.autograd.gradcheck(logprobs, inputs)
    assert torch.autograd.gradcheck(entropy, inputs)


def test_frozen_inputs_get_no_gradient():
    hidden, targets, head = parts()
    frozen = Head(head.weight.detach())
    linear_logprobs(hidden, targets, frozen)[0].sum().backward()
    assert hidden.grad is not None and frozen.weight.grad is None


def test_huge_logits_stay_finite():
    hidden, targets, head = parts(torch.float32)
    logprobs, entropy = linear_logprobs(hidden * 1e4, targets, head, with_entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.isfinite().all() and (logprobs <= 0).all()
    assert entropy.isfinite().all() and (entropy >= -1e-6).all()
    assert hidden.grad.isfinite().all()


def test_no_rows_give_no_values_and_zero_gradients():
    _, _, head = parts(torch.float32)
    hidden = torch.zeros(0, WIDTH, requires_grad=True)
    logprobs, entropy = linear_logprobs(
        hidden, torch.zeros(0, dtype=torch.int64), head, with_entropy=True
    )
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert head.weight.grad.abs().max() == 0


def test_bfloat16_weights_give_float32_results_near_the_exact_ones():
    hidden, targets, head = parts(torch.float32)
    exact, _ = plain(hidden, targets, head, 1.0)
    low = Head(head.weight.detach().bfloat16().requires_grad_())
    logprobs, _ = linear_logprobs(hidden.bfloat16(), targets, low)
    logprobs.sum().backward()
    assert logprobs.dtype == torch.float32 and low.weight.grad.dtype == torch.bfloat16
    assert (logprobs - exact).abs().max() < 0.1


def test_autocast_computes_in_its_type_and_returns_gradients_in_the_weights_type():
    hidden, targets, head = parts(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = linear_logprobs(hidden, targets, head)
    logprobs.sum().backward()
    exact, _ = plain(hidden, targets, head, 1.0)
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32
    assert 0 < (logprobs - exact).abs().max() < 0.1


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest(rows, vocabulary):
    hidden = torch.randn(rows, 4, requires_grad=True)
    head = Head(torch.randn(vocabulary, 4, requires_grad=True))
    targets = torch.zeros(rows, dtype=torch.int64)
    with LargestTensor() as seen:
        logprobs, entropy = linear_logprobs(
            hidden, targets, head, 0.9, with_entropy=True, chunk_rows=8
        )
        (logprobs.sum() + entropy.sum()).backward()
    return seen.elements


def test_memory_is_that_of_one_chunk_and_does_not_grow_with_the_number_of_tokens():
    assert largest(64, 1000) == largest(640, 1000) == 8 * 1000


@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_one_kernel_forms_are_those_of_the_blocks(with_entropy):
    torch.manual_seed(0)
    logits = torch.randn(7, 50, dtype=torch.float64) * 5
    targets = torch.randint(50, (7,))
    logprobs, normaliser, entropy = _statistics(logits, targets)
    exact = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(logprobs, exact.log_prob(targets), atol=1e-12)
    assert torch.allclose(entropy, exact.entropy(), atol=1e-12)
    weight, second = torch.randn(2, 7, dtype=torch.float64)
    asked = (second, entropy) if with_entropy else ()
    found = _narrow_gradient(torch.float64, logits, targets, normaliser, weight, *asked)
    expected = _logit_gradient(logits.clone(), normaliser, targets, weight, asked or None)
    assert torch.allclose(found, expected, atol=1e-12)
