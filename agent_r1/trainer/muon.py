r"""Muon with its iteration in float32, for processors that compute slowly in bfloat16.

``torch.optim.Muon`` iterates in bfloat16 wherever it runs. A GPU multiplies such matrices
fastest; a processor without instructions for them (most laptops) is 13 times as slow as in
float32, which then takes most of the time of a small model's training.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """``torch.optim.Muon``: the same options, state and update, more exactly computed."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Momentum, orthogonalised, scaled by ``sqrt(max(1, rows / columns))``; decoupled decay
        (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient, momentum = weight.grad, group["momentum"]
        assert gradient is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        wanted = gradient.lerp(mean, momentum) if group["nesterov"] else mean
        direction = orthogonal(wanted, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(direction.to(weight.dtype), alpha=-rate)


def orthogonal(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Roughly ``U V^T`` of ``matrix = U S V^T``: singular values near 1, by Newton and Schulz.

    ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` from ``X = matrix / |matrix|``, in float32.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    found = (matrix.T if tall else matrix).float()
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found
