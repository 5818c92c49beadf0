"""One network that is being trained: gradients in, one guarded optimizer step out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.config.policy import OptimConfig
from agent_r1.trainer.optim import build_optimizers

LOSS_SCALE_START = 2.0**16
LOSS_SCALE_PATIENCE = 2000
"""float16 only: start of the loss scale, and good steps after which it doubles."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One attempted optimizer step. ``skipped``: something was not finite, weights kept."""

    grad_norm: float
    lr: float
    skipped: bool


class Trainable:
    """A module, its optimizers, and what an exact continuation needs of both.

    Weights in a 16-bit type are updated through a float32 copy, in which gradients of
    micro-batches are summed too: at learning rates of reinforcement learning an update is
    smaller than a bfloat16 weight can show. A non-finite loss or gradient norm costs the
    step and nothing else.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        total_steps: int,
        *,
        grad_clip: float,
        autocast: str = "off",
    ) -> None:
        self.module = module
        self.steps = 0
        self._grad_clip = grad_clip
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        narrow = any(p.dtype in (torch.bfloat16, torch.float16) for p in self._parameters)
        self._master = copy.deepcopy(module).float() if narrow else module
        self._masters = [p for p in self._master.parameters() if p.requires_grad]
        self._optimizers = build_optimizers(self._master, config, total_steps)
        self._autocast = None if autocast == "off" else getattr(torch, autocast)
        self._scale = LOSS_SCALE_START if self._autocast is torch.float16 else 1.0
        self._good_steps = 0
        self._finite = True

    @property
    def device(self) -> torch.device:
        return self._parameters[0].device

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes, as configured."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def backward(self, loss: Tensor) -> float:
        """Add the gradient of one micro-batch's share of the loss; returns that share."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self._finite = False
        elif loss.requires_grad:
            (loss * self._scale).backward()  # type: ignore[no-untyped-call]
            self._widen()
        return value

    def step(self) -> StepResult:
        """Clip and apply what was added since the last step, unless it is not finite."""
        norm = self._unscaled_norm()
        if not (self._finite and math.isfinite(norm)):
            self._forget()
            return StepResult(norm, 0.0, skipped=True)
        if norm > self._grad_clip:
            torch._foreach_mul_(_gradients(self._masters), self._grad_clip / norm)
        rate = self._optimizers.step(self.steps)
        self._narrow()
        self.steps += 1
        self._grow_scale()
        return StepResult(norm, rate, skipped=False)

    def state_dict(self) -> dict[str, Any]:
        """Weights, float32 copies, moments, counters: tensors and plain values only."""
        return {
            "module": self.module.state_dict(),
            "master": None if self._master is self.module else self._master.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "steps": self.steps,
            "scale": self._scale,
            "good_steps": self._good_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.module.load_state_dict(state["module"])
        if self._master is not self.module:
            self._master.load_state_dict(state["master"])
        self._optimizers.load_state_dict(state["optimizers"])
        self.steps = int(state["steps"])
        self._scale = float(state["scale"])
        self._good_steps = int(state["good_steps"])

    def _widen(self) -> None:
        """Move 16-bit gradients into the float32 copies, so that their sum is exact."""
        if self._master is self.module:
            return
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def _narrow(self) -> None:
        if self._master is not self.module:
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                parameter.copy_(master)

    def _unscaled_norm(self) -> float:
        gradients = _gradients(self._masters)
        if not gradients:
            return 0.0
        if self._scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self._scale)
        return float(nn.utils.get_total_norm(gradients))

    def _forget(self) -> None:
        self._finite = True
        self._good_steps = 0
        for parameter in (*self._parameters, *self._masters):
            parameter.grad = None
        if self._autocast is torch.float16:
            self._scale = max(1.0, self._scale / 2)

    def _grow_scale(self) -> None:
        self._good_steps += 1
        if self._autocast is torch.float16 and self._good_steps % LOSS_SCALE_PATIENCE == 0:
            self._scale *= 2


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]
