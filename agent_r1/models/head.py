"""Log-probabilities of chosen tokens from hidden states, without ever holding all logits.

The output layer of a language model turns ``[M, D]`` hidden states into ``[M, V]``
logits, by far the largest tensor of a training step, although one number per row is
wanted. Here they exist for a chunk of rows at a time: the forward pass keeps only the
hidden states and the normaliser of each row, and the backward pass computes a chunk's
logits again, turns them into their own gradient in place and uses them up at once.
Memory is that of one chunk, whatever the vocabulary and the number of tokens are; the
price is one more matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Size of the one buffer of logits, by device type."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a model turns a hidden state into the logits that it samples from.

    ``logits = softcap(scale * (hidden @ weight.T) + bias)``, then divided by the
    sampling temperature. ``softcap`` is Gemma's ``c * tanh(x / c)``.
    """

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None


def linear_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    temperature: float = 1.0,
    *,
    with_entropy: bool = False,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``log p(targets[M])`` and, if asked, the entropy ``[M]`` of each row's distribution.

    ``hidden`` is ``[M, D]``. Matrix products run in the dtype of ``hidden`` (or of
    autocast), everything after them in float32 (float64 for float64 input). Both results
    are differentiable, once, with respect to ``hidden``, weight and bias.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    exact = torch.promote_types(hidden.dtype, torch.float32)
    if chunk_rows is None:
        row_bytes = head.weight.shape[0] * exact.itemsize
        chunk_rows = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // row_bytes)
    settings = _Settings(temperature, head.scale, head.softcap, chunk_rows, dtype, exact)
    with torch.autocast(device, enabled=False):
        function: Any = _LinearLogprobs.apply  # torch leaves ``apply`` untyped
        logprobs, entropy = function(
            hidden, head.weight, head.bias, targets, settings, with_entropy
        )
    return logprobs, entropy if with_entropy else None


@dataclass(frozen=True, slots=True)
class _Settings:
    temperature: float
    scale: float
    softcap: float | None
    chunk_rows: int
    compute: torch.dtype
    exact: torch.dtype

    def chunks(self, rows: int) -> Iterator[slice]:
        return (slice(i, min(i + self.chunk_rows, rows)) for i in range(0, rows, self.chunk_rows))

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Tempered logits ``[C, V]`` of one chunk, in a fresh buffer of the exact dtype.

        Without bias and soft-capping both factors go into the few hidden numbers, so
        that the many logits are touched once.
        """
        plain = bias is None and self.softcap is None
        factor = self.scale / (self.temperature if plain else 1.0)
        logits = _matmul(hidden if factor == 1.0 else hidden * factor, weight, self.exact)
        if bias is not None:
            logits += bias
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if plain or self.temperature == 1.0 else logits.div_(self.temperature)

    def to_raw(self, grad: Tensor, logits: Tensor | None) -> Tensor:
        """Gradient wrt tempered logits to gradient wrt ``scale * hidden @ weight.T + bias``."""
        if self.temperature != 1.0:
            grad.div_(self.temperature)
        if self.softcap is not None:
            assert logits is not None
            capped = logits.mul_(self.temperature / self.softcap)
            grad.mul_(capped.square_().neg_().add_(1.0))
        return grad


def _matmul(hidden: Tensor, weight: Tensor, exact: torch.dtype) -> Tensor:
    """``hidden @ weight.T`` in the exact dtype; products accumulate in it where the device can."""
    if hidden.dtype == exact:
        return hidden @ weight.t()
    if hidden.is_cuda:
        result: Tensor = torch.mm(hidden, weight.t(), out_dtype=exact)
        return result
    return (hidden @ weight.t()).to(exact)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: _Settings,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        hidden_c, weight_c = hidden.to(settings.compute), weight.to(settings.compute)
        logprobs = hidden.new_empty(len(targets), dtype=settings.exact)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        normaliser = torch.empty_like(logprobs)
        for rows in settings.chunks(len(targets)):
            logits = settings.logits(hidden_c[rows], weight_c, bias)
            chosen = logits.gather(1, targets[rows, None]).squeeze(1)
            normaliser[rows] = logits.logsumexp(1)
            logprobs[rows] = chosen - normaliser[rows]
            if with_entropy:
                logits -= normaliser[rows, None]
                entropy[rows] = -(logits.exp() * logits).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        settings: _Settings = ctx.settings
        hidden_c, weight_c = hidden.to(settings.compute), weight.to(settings.compute)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_c) if need_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=settings.exact) if need_weight else None
        grad_bias = bias.new_zeros(bias.shape, dtype=settings.exact) if need_bias else None
        for rows in settings.chunks(len(targets)):
            logits = settings.logits(hidden_c[rows], weight_c, bias)
            capped = logits.clone() if settings.softcap is not None else None
            g_entropy = None if grad_entropy is None else (grad_entropy[rows], entropy[rows])
            grad = _logit_gradient(
                logits, normaliser[rows], targets[rows], grad_logprobs[rows], g_entropy
            )
            grad = settings.to_raw(grad, capped)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            if settings.scale != 1.0:
                grad *= settings.scale
            grad = grad.to(settings.compute)
            if grad_hidden is not None:
                torch.mm(grad, weight_c, out=grad_hidden[rows])
            if grad_weight is not None:
                _accumulate(grad_weight, grad, hidden_c[rows])
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _logit_gradient(
    logits: Tensor,
    normaliser: Tensor,
    targets: Tensor,
    grad_logprobs: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient wrt the logits ``[C, V]``, overwriting them where no entropy is asked for.

    ``d logp_y / d z_j = [j = y] - p_j`` and ``d H / d z_j = -p_j (log p_j + H)``.
    """
    logits -= normaliser[:, None]  # log p
    if entropy is None:
        grad = logits.exp_().mul_(-grad_logprobs[:, None])
    else:
        grad_entropy, value = entropy
        grad = logits.exp()
        factor = logits.add_(value[:, None]).mul_(grad_entropy[:, None])
        grad.mul_(factor.add_(grad_logprobs[:, None]).neg_())
    return grad.scatter_add_(1, targets[:, None], grad_logprobs[:, None])


def _accumulate(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """``total[V, D] += grad[C, V].T @ hidden[C, D]``, the sum over chunks in ``total``'s dtype."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), hidden)
    elif grad.is_cuda:
        total += torch.mm(grad.t(), hidden, out_dtype=total.dtype)
    else:
        total += grad.t() @ hidden
