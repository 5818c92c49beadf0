"""Activations that are cheaper to compute twice than to keep.

In a transformer block of the Llama kind, about half of what autograd stores between forward
and backward pass are results of elementwise operations: the normalised input of each norm,
``act(gate)`` and ``act(gate) * up``. Computing them again in the backward pass costs no
matrix product. (Selective recomputation: Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", arXiv 2205.05198, section 5.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agent_r1.models.fused import FUSED, PRODUCT, is_gated


def recompute_elementwise(model: nn.Module) -> int:
    """Let norms and gated feed-forward blocks of ``model`` recompute; returns how many do.

    Values and gradients stay the same to the last bit. A feed-forward block that computes
    anything else than ``down(act(gate(x)) * up(x))`` is left as it is.
    """
    changed = 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            if not hasattr(module, FUSED):
                _recompute_norm(module)
                changed += 1
        elif is_gated(module):
            module.forward = _gated_forward(module)
            changed += 1
    return changed


def _recompute_norm(norm: nn.Module) -> None:
    plain: Callable[[Tensor], Tensor] = norm.forward

    def forward(hidden: Tensor) -> Tensor:
        return _recomputed(plain, hidden)

    norm.forward = forward


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which only the inputs are stored.

    torch stops a recomputation at the last tensor that is needed, hence before the matrix
    product of a linear layer that ends ``function``.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def _gated_forward(mlp: Any) -> Callable[[Tensor], Tensor]:
    product = getattr(mlp, PRODUCT, None) or (lambda gate, up: mlp.act_fn(gate) * up)

    def finish(gate: Tensor, up: Tensor) -> Tensor:
        result: Tensor = mlp.down_proj(product(gate, up))
        return result

    def forward(hidden: Tensor) -> Tensor:
        return _recomputed(finish, mlp.gate_proj(hidden), mlp.up_proj(hidden))

    return forward
