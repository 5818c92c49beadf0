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

from agent_r1.models.fused import compile_once

CHUNK_BYTES = {"cpu": 96 << 20, "cuda": 1 << 30}
"""Size of the one buffer of logits, by device type."""

BLOCK_BYTES = 1 << 20
"""On a CPU, everything but the matrix products walks through the buffer in blocks that
stay in the cache of a core from the first operation on them to the last."""


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
        chunk_rows = rows_at_once(hidden, head)
    block_rows = chunk_rows
    if device == "cpu":
        block_rows = max(1, BLOCK_BYTES // (head.weight.shape[0] * exact.itemsize))
    settings = _Settings(
        device, temperature, head.scale, head.softcap, chunk_rows, block_rows, dtype, exact
    )
    with torch.autocast(device, enabled=False):
        function: Any = _LinearLogprobs.apply  # torch leaves ``apply`` untyped
        logprobs, entropy = function(
            hidden, head.weight, head.bias, targets, settings, with_entropy
        )
    return logprobs, entropy if with_entropy else None


def rows_at_once(hidden: Tensor, head: Head) -> int:
    """How many rows have their logits in one buffer of the device's size."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    room = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cuda"])
    return max(1, room // (head.weight.shape[0] * exact.itemsize))


@dataclass(frozen=True, slots=True)
class _Settings:
    device: str
    temperature: float
    scale: float
    softcap: float | None
    chunk_rows: int
    block_rows: int
    compute: torch.dtype
    exact: torch.dtype

    def chunks(self, rows: int) -> list[slice]:
        """Rows whose logits exist at the same time."""
        return [slice(i, min(i + self.chunk_rows, rows)) for i in range(0, rows, self.chunk_rows)]

    def blocks(self, logits: Tensor, rows: slice) -> Iterator[tuple[Tensor, slice]]:
        """Pieces of a chunk's raw logits, with the rows they are of."""
        for start in range(rows.start, rows.stop, self.block_rows):
            block = slice(start, min(start + self.block_rows, rows.stop))
            yield logits[block.start - rows.start : block.stop - rows.start], block

    @property
    def fused(self) -> bool:
        """What follows the product is one kernel a direction: on a GPU, without soft-capping."""
        return self.device == "cuda" and self.folded

    @property
    def folded(self) -> bool:
        """Scale and temperature are applied to the few hidden numbers, not the many logits."""
        return self.softcap is None

    def prepare(self, hidden: Tensor) -> Tensor:
        """Hidden states as they enter the matrix product."""
        factor = self.scale / self.temperature if self.folded else self.scale
        return (hidden if factor == 1.0 else hidden * factor).to(self.compute)

    def raw(self, prepared: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
        """Logits ``[C, V]`` of a chunk, in the buffer, before soft-capping."""
        logits = buffer[: len(prepared)]
        if logits.dtype == prepared.dtype:
            torch.mm(prepared, weight.t(), out=logits)
        else:  # on a GPU products of 16-bit numbers are kept as they accumulate, in float32
            torch.mm(prepared, weight.t(), out_dtype=logits.dtype, out=logits)
        if bias is not None:
            logits += bias / self.temperature if self.folded else bias
        return logits

    def tempered(self, raw: Tensor) -> Tensor:
        """Final logits of a block in the exact dtype, in place where that is its dtype."""
        logits = raw.to(self.exact)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return logits

    def gradient_of_raw(self, grad: Tensor, capped: Tensor | None) -> Tensor:
        """Gradient wrt final logits to gradient wrt raw ones; ``capped`` are final logits."""
        if self.softcap is None:
            return grad
        assert capped is not None
        slope = capped.mul_(self.temperature / self.softcap).square_().neg_().add_(1.0)
        return grad.mul_(slope.div_(self.temperature))

    def buffer(self, rows: int, weight: Tensor) -> Tensor:
        """Room for the logits of one chunk."""
        dtype = self.exact if weight.is_cuda else self.compute
        return weight.new_empty((min(rows, self.chunk_rows), weight.shape[0]), dtype=dtype)


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
        prepared, weight_c = settings.prepare(hidden), weight.to(settings.compute)
        logprobs = hidden.new_empty(len(targets), dtype=settings.exact)
        entropy = torch.empty_like(logprobs) if with_entropy else logprobs.new_empty(0)
        normaliser = torch.empty_like(logprobs)
        buffer = settings.buffer(len(targets), weight_c)
        for chunk in settings.chunks(len(targets)):
            raw = settings.raw(prepared[chunk], weight_c, bias, buffer)
            if settings.fused:
                found = compile_once(_statistics)(raw, targets[chunk])
                logprobs[chunk], normaliser[chunk] = found[0], found[1]
                if with_entropy:
                    entropy[chunk] = found[2]
                continue
            for piece, rows in settings.blocks(raw, chunk):
                logits = settings.tempered(piece)
                chosen = logits.gather(1, targets[rows, None]).squeeze(1)
                top = logits.amax(1)
                logits -= top[:, None]
                powers = logits.exp()
                total = powers.sum(1)
                normaliser[rows] = top + total.log()
                logprobs[rows] = chosen - normaliser[rows]
                if with_entropy:
                    entropy[rows] = total.log() - powers.mul_(logits).sum(1) / total
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
        settings: _Settings = ctx.settings
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normaliser)
        prepared, weight_c = settings.prepare(hidden), weight.to(settings.compute)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grads = _Gradients(
            torch.empty_like(prepared) if need_hidden else None,
            torch.zeros_like(weight, dtype=settings.exact) if need_weight else None,
            torch.zeros_like(bias, dtype=settings.exact) if need_bias else None,
        )
        buffer = settings.buffer(len(targets), weight_c)
        for chunk in settings.chunks(len(targets)):
            raw = settings.raw(prepared[chunk], weight_c, bias, buffer)
            if settings.fused:
                given = (raw, targets[chunk], normaliser[chunk], grad_logprobs[chunk])
                asked = () if grad_entropy is None else (grad_entropy[chunk], entropy[chunk])
                narrow = compile_once(_narrow_gradient)(settings.compute, *given, *asked)
                grads.add(chunk, narrow, weight_c, prepared[chunk])
                continue
            for piece, rows in settings.blocks(raw, chunk):
                logits = settings.tempered(piece)
                capped = None if settings.softcap is None else logits.clone()
                of_entropy = None if grad_entropy is None else (grad_entropy[rows], entropy[rows])
                grad = _logit_gradient(
                    logits, normaliser[rows], targets[rows], grad_logprobs[rows], of_entropy
                )
                grad = settings.gradient_of_raw(grad, capped)
                if grad.data_ptr() != piece.data_ptr():
                    piece.copy_(grad)
            grads.add(chunk, raw, weight_c, prepared[chunk])
        return (*grads.scaled(settings, (hidden, weight, bias)), None, None, None)


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Gradients of prepared hidden states, weight and bias, summed over chunks."""

    prepared: Tensor | None  # [M, D]
    weight: Tensor | None  # [V, D]
    bias: Tensor | None  # [V]

    def add(self, rows: slice, raw: Tensor, weight: Tensor, prepared: Tensor) -> None:
        """Use up a chunk's gradient ``raw[C, V]`` wrt its raw logits."""
        if self.bias is not None:
            self.bias.add_(raw.sum(0))
        raw = raw.to(prepared.dtype)
        if self.prepared is not None:
            torch.mm(raw, weight, out=self.prepared[rows])
        if self.weight is not None:
            _accumulate(self.weight, raw, prepared)

    def scaled(
        self, settings: _Settings, inputs: tuple[Tensor, Tensor, Tensor | None]
    ) -> list[Tensor | None]:
        """Gradients of the function's own inputs, in their dtypes."""
        hidden, weight, bias = inputs
        factor = settings.scale / settings.temperature if settings.folded else settings.scale
        if self.prepared is not None and factor != 1.0:
            self.prepared.mul_(factor)
        if self.bias is not None and settings.folded:
            self.bias.div_(settings.temperature)
        return [
            None if self.prepared is None else self.prepared.to(hidden.dtype),
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        ]


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``log p(target)``, normaliser and entropy, ``[C]`` each, of ``logits[C, V]``."""
    top = logits.amax(1)
    shifted = logits - top[:, None]
    powers = shifted.exp()
    total = powers.sum(1)
    normaliser = top + total.log()
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen - normaliser, normaliser, total.log() - (powers * shifted).sum(1) / total


def _narrow_gradient(
    dtype: torch.dtype,
    logits: Tensor,
    targets: Tensor,
    normaliser: Tensor,
    grad_logprobs: Tensor,
    grad_entropy: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    """:func:`_logit_gradient` as one expression, rounded to ``dtype`` at its end."""
    logp = logits - normaliser[:, None]
    factor = grad_logprobs[:, None]
    if grad_entropy is not None and entropy is not None:
        factor = factor + grad_entropy[:, None] * (logp + entropy[:, None])
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return (torch.where(hit, grad_logprobs[:, None], 0.0) - logp.exp() * factor).to(dtype)


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
        addmm: Any = torch.addmm  # the stubs lack the overload with a dtype
        addmm(total, grad.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        total += grad.t() @ hidden
