"""Optimizers and their learning-rate schedule, as the configuration names them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from agent_r1.config.policy import OptimConfig
from agent_r1.config.sft import SftOptimConfig
from agent_r1.errors import ConfigError
from agent_r1.trainer.muon import Float32Muon

Schedule = Callable[[int], float]
"""Number of finished steps to a factor of the peak learning rate, for the next step."""


class OptimizerSet:
    """One or two optimizers that act as one: Muon for matrices with AdamW for the rest.

    The schedule is a function of the number of finished steps, so that a resumed run
    continues with the very same rates.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], schedule: Schedule) -> None:
        self._optimizers = list(optimizers)
        self._schedule = schedule
        self._peaks = [[float(g["lr"]) for g in opt.param_groups] for opt in optimizers]

    @property
    def parameters(self) -> list[nn.Parameter]:
        groups = [group for opt in self._optimizers for group in opt.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def step(self, done: int) -> float:
        """Update the weights after ``done`` finished steps; returns the first rate used."""
        factor = self._schedule(done)
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                _set_rate(group, peak * factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self._peaks[0][0] * factor

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        for optimizer, part in zip(self._optimizers, state, strict=True):
            optimizer.load_state_dict(part)


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Torchao keeps the rate in a tensor, so that its compiled step need not change."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def build_optimizers(
    model: nn.Module,
    config: OptimConfig,
    total_steps: int,
    masters: Mapping[int, nn.Parameter] | None = None,
) -> OptimizerSet:
    """The optimizers of ``config`` for all trainable weights of ``model``.

    ``masters`` maps ``id(weight)`` to the tensor that is updated in the weight's place.
    """
    extra = config if isinstance(config, SftOptimConfig) else SftOptimConfig(lr=config.lr)
    matrices, others = _split(model) if config.name == "muon" else ([], _trainable(model))
    if masters is not None:
        matrices, others = ([masters[id(p)] for p in part] for part in (matrices, others))
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        muon = Float32Muon if matrices[0].device.type == "cpu" else torch.optim.Muon
        optimizers.append(
            muon(matrices, lr=config.lr, weight_decay=config.weight_decay, momentum=extra.momentum)
        )
    rate = extra.lr_rest if config.name == "muon" and extra.lr_rest is not None else config.lr
    optimizers.append(_adamw(_decay_groups(others, config.weight_decay), rate, config))
    return OptimizerSet(optimizers, schedule(config, total_steps, extra.lr_decay_ratio))


def _adamw(groups: list[dict[str, Any]], rate: float, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, or the one of torchao that keeps both moments in 8 bits (Dettmers et al.,
    arXiv 2110.02861: block-wise, dynamic quantisation).
    """
    if config.name != "adamw_8bit":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.eps, fused=True)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "optim.name=adamw_8bit needs the package torchao; install it with "
            "pip install 'agent-r1[torchao]', or set optim.name=adamw"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(groups, lr=rate, betas=config.betas, eps=config.eps)
    return made


def schedule(config: OptimConfig, total_steps: int, decay_ratio: float = 1.0) -> Schedule:
    """Linear warm-up from 0, a plateau, and a fall over the last ``decay_ratio`` of all steps."""
    warmup = config.lr_warmup_steps
    if warmup < 0:
        warmup = round(config.lr_warmup_steps_ratio * total_steps)
    fall = max(1, min(round(decay_ratio * total_steps), total_steps - warmup))
    low, shape = config.min_lr_ratio, config.lr_scheduler_type

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / warmup
        left = min(1.0, max(0.0, (total_steps - done) / fall))
        if shape == "constant":
            return 1.0
        if shape == "cosine":
            left = 0.5 * (1.0 - math.cos(math.pi * left))
        return low + (1.0 - low) * left

    return factor


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weight matrices of the trunk, and everything else.

    Muon's update is meant for matrices that map hidden states to hidden states; an
    embedding is a table of independent rows, and so is an output layer.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        tables.add(id(head.weight))
    matrices = [p for p in _trainable(model) if p.ndim == 2 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in _trainable(model) if id(p) not in chosen]


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms are not pulled towards 0."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
