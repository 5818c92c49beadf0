"""One network that is being trained: gradients in, one guarded optimizer step out."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.config.policy import OptimConfig
from agent_r1.models.sharded import whole
from agent_r1.trainer.optim import build_optimizers
from agent_r1.trainer.peers import ALONE, Peers

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

    Weights in a 16-bit type are updated through float32 copies (*masters*), in which
    gradients of micro-batches are summed too: at learning rates of reinforcement learning an
    update is smaller than a bfloat16 weight can show. Only what is trained has a master, so
    a frozen base under adapters costs its weights and nothing else. With ``optim.offload``
    masters and moments live in the machine's memory and are updated there; gradients are
    summed on the device all the same. A non-finite loss or gradient norm costs the step and
    nothing else.

    ``peers`` compute other rows of the same update. Theirs and this one's gradients are
    averaged as they are computed, hence the losses, whose weights are those of the whole
    mini-batch, count as often as there are ranks.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        total_steps: int,
        *,
        grad_clip: float,
        autocast: str = "off",
        peers: Peers = ALONE,
    ) -> None:
        self.module = module
        self._peers = peers
        self.steps = 0
        self._grad_clip = grad_clip
        self._slots = _slots(module, offload=config.offload)
        masters = {id(slot.parameter): slot.master for slot in self._slots}
        self._optimizers = build_optimizers(module, config, total_steps, masters)
        self._autocast = None if autocast == "off" else getattr(torch, autocast)
        self._scale = LOSS_SCALE_START if self._autocast is torch.float16 else 1.0
        self._good_steps = 0
        self._shares: list[Tensor] = []
        self._complete = all(parameter.requires_grad for parameter in module.parameters())

    @property
    def device(self) -> torch.device:
        return self._peers.device or self._slots[0].parameter.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order in which the optimizers count them."""
        return self._optimizers.parameters

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes, as configured."""
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of one micro-batch's share of the loss; returns that share.

        Nothing waits for a GPU here: whether all shares were finite is asked in :meth:`step`.
        """
        share = loss.detach()
        self._shares.append(share)
        if loss.requires_grad:  # whatever its value: other ranks wait for this one's gradient
            (loss * (self._scale * self._peers.count)).backward()  # type: ignore[no-untyped-call]
        return share

    def step(self) -> StepResult:
        """Clip and apply what was added since the last step, unless it is not finite."""
        norm = self._unscaled_norm()
        finite = all(math.isfinite(share) for share in map(float, self._shares))
        self._shares.clear()
        if not self._peers.agree(finite and math.isfinite(norm)):
            self._forget()
            return StepResult(norm, 0.0, skipped=True)
        if norm > self._grad_clip:
            torch._foreach_mul_(self._gradients(), self._grad_clip / norm)
        for slot in self._slots:
            slot.hand_over()
        rate = self._optimizers.step(self.steps)
        for slot in self._slots:
            slot.narrow()
        self.steps += 1
        self._grow_scale()
        return StepResult(norm, rate, skipped=False)

    def state_dict(self) -> dict[str, Any]:
        """Weights, masters, moments, counters: tensors and plain values only.

        Of a module that is trained in part (adapters on a frozen base) only that part.
        """
        masters = {s.name: s.master.detach() for s in self._slots if s.master is not s.parameter}
        trained = {s.name: s.parameter.detach() for s in self._slots}
        return {
            "module": self.module.state_dict() if self._complete else trained,
            "master": masters or None,
            "optimizers": self._optimizers.state_dict(),
            "steps": self.steps,
            "scale": self._scale,
            "good_steps": self._good_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where :meth:`state_dict` was taken."""
        self.module.load_state_dict(state["module"], strict=self._complete)
        with torch.no_grad():
            for slot in self._slots:
                if slot.master is not slot.parameter:
                    slot.master.copy_((state["master"] or state["module"])[slot.name])
        self._optimizers.load_state_dict(state["optimizers"])
        self.steps = int(state["steps"])
        self._scale = float(state["scale"])
        self._good_steps = int(state["good_steps"])

    def _gradients(self) -> list[Tensor]:
        return [slot.gradient for slot in self._slots if slot.gradient is not None]

    def _unscaled_norm(self) -> float:
        gradients = self._gradients()
        if not gradients:
            return 0.0
        if self._scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self._scale)
        return float(whole(nn.utils.get_total_norm(gradients)))

    def _forget(self) -> None:
        self._good_steps = 0
        for slot in self._slots:
            slot.forget()
        if self._autocast is torch.float16:
            self._scale = max(1.0, self._scale / 2)

    def _grow_scale(self) -> None:
        self._good_steps += 1
        if self._autocast is torch.float16 and self._good_steps % LOSS_SCALE_PATIENCE == 0:
            self._scale *= 2


class _Slot:
    """One trained parameter, the tensor that the optimizer updates, and the summed gradient.

    ``master`` is the parameter itself where it is float32 (or wider) and not offloaded. Else
    autograd's 16-bit gradient is added to a float32 sum the moment it is complete and given
    up at once, so that never more than one of them exists.
    """

    __slots__ = ("__weakref__", "_hook", "_landing", "_sum", "master", "name", "parameter")

    def __init__(self, name: str, parameter: nn.Parameter, *, offload: bool) -> None:
        self.name = name
        self.parameter = parameter
        narrow = parameter.dtype in (torch.bfloat16, torch.float16)
        self.master = parameter
        self._sum: Tensor | None = None
        self._landing = torch.empty(0) if offload else None
        if narrow or offload:
            device = torch.device("cpu") if offload else parameter.device
            exact = parameter.detach().to(device, torch.promote_types(parameter.dtype, torch.float))
            self.master = nn.Parameter(exact.clone())
            register: Any = parameter.register_post_accumulate_grad_hook
            self._hook = register(_widener(weakref.ref(self)))

    @property
    def gradient(self) -> Tensor | None:
        """The sum so far, on the parameter's device."""
        return self.parameter.grad if self.master is self.parameter else self._sum

    def hand_over(self) -> None:
        """Give the sum to the optimizer."""
        if self.master is not self.parameter:
            total, self._sum = self._sum, None
            self.master.grad = (
                total if total is None or self._landing is None else self._land(total)
            )

    def _land(self, total: Tensor) -> Tensor:
        """The sum in the machine's memory, always in the same page-locked place."""
        assert self._landing is not None
        if self._landing.numel() == 0:
            pinned = total.device.type == "cuda"
            self._landing = torch.empty(total.shape, dtype=total.dtype, pin_memory=pinned)
        return self._landing.copy_(total)

    @torch.no_grad()
    def narrow(self) -> None:
        """Round the updated master to the parameter."""
        if self.master is not self.parameter:
            self.parameter.copy_(self.master)

    def forget(self) -> None:
        self.parameter.grad = self.master.grad = self._sum = None

    def widen(self, parameter: Tensor) -> None:
        """Take over the gradient that autograd has just completed."""
        assert parameter.grad is not None
        if self._sum is None:
            self._sum = parameter.grad.to(self.master.dtype)
        else:
            self._sum.add_(parameter.grad)  # widened inside the kernel
        parameter.grad = None


def _widener(slot: weakref.ref[_Slot]) -> Callable[[Tensor], None]:
    """A hook that does not keep its slot: no garbage collector finds a cycle through a hook."""

    def widen(parameter: Tensor) -> None:
        owner = slot()
        if owner is not None:
            owner.widen(parameter)

    return widen


def _slots(module: nn.Module, *, offload: bool) -> Sequence[_Slot]:
    return [
        _Slot(name, parameter, offload=offload)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
