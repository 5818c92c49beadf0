"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) by way of PEFT.

An adapted layer computes ``x W^T + (alpha / rank) x A^T B^T`` with ``A[r, in]`` and
``B[out, r]``; only A and B are trained. B starts at zero, so the policy begins as the base
model, and the base without its adapters is the reference policy at no memory.

Adapters are injected into the model, whose class and parameter names stay what they were but
for the adapted layers. PEFT is an optional dependency and imported only where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.errors import ModelError

ADAPTER = "default"
ADAPTER_FILE = "adapter_config.json"
_BASE = ".base_layer."


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is added to one weight: ``scale`` x B A, with ``a[r, in]`` and ``b[out, r]``."""

    a: Tensor
    b: Tensor
    scale: float

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with the update added, in float32, rounded once to the weight's type."""
        update = (self.b.float() @ self.a.float()) * self.scale
        return (weight.float() + update).to(weight.dtype)


def add_lora(
    model: nn.Module, *, rank: int, alpha: float, targets: Sequence[str] = ("all-linear",)
) -> nn.Module:
    """Inject trainable adapters into ``model`` and freeze everything else; returns ``model``.

    ``targets`` are the ends of layer names (``q_proj``), or ``all-linear`` for every linear
    layer but the output layer. A is drawn from torch's global generator. Raises
    :class:`ModelError` when PEFT is missing or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(
            "actor_rollout_ref.model.lora_rank needs the package peft; install it with "
            "pip install 'agent-r1[lora]', or set lora_rank=0"
        ) from error
    chosen = _linear_names(model) if "all-linear" in targets else list(targets)
    scale: Any = alpha  # PEFT's annotation says int; the paper's alpha is any number
    config = LoraConfig(r=rank, lora_alpha=scale, target_modules=chosen, lora_dropout=0.0)
    try:
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ModelError(
            f"no adapter fits target_modules={chosen}: {error}. Layers of this model are called "
            f"{', '.join(_linear_names(model))}"
        ) from error
    for _, layer in lora_layers(model):
        layer.forward = _quick_forward(layer)
    return model


def _quick_forward(layer: Any) -> Callable[[Tensor], Tensor]:
    """The layer's function in two passes over its output less than PEFT's own forward.

    The scale goes onto the few numbers between A and B, and the sum into B's product.
    """
    a, b, scale = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], layer.scaling[ADAPTER]

    def forward(hidden: Tensor) -> Tensor:
        out: Tensor = layer.base_layer(hidden)
        if layer.disable_adapters:
            return out
        low = a(hidden) * scale
        flat = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b.weight.t())
        return flat.view(out.shape)

    return forward


def _linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but the output layer."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    found = {
        name.rpartition(".")[2]: None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return list(found)


def lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of the adapted layers; none in a model without adapters."""
    return [(name, module) for name, module in model.named_modules() if is_lora_linear(module)]


def is_lora_linear(module: nn.Module) -> bool:
    """Whether this is PEFT's linear layer with plain low-rank adapters."""
    kind = type(module)
    return kind.__name__ == "Linear" and kind.__module__.startswith("peft.tuners.lora")


def has_lora(model: nn.Module) -> bool:
    """Whether any layer carries adapters."""
    return any(is_lora_linear(module) for module in model.modules())


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The base model, while the context lasts. What is to be trained stays what it was."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def adapters_of(model: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Adapter]:
    """The adapters, by the names that the weights have in the plain model.

    ``values`` take the place of the model's own parameters, by their names.
    """
    found = {}
    for name, layer in lora_layers(model):
        if values is None:
            a, b = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
        else:
            a, b = (values[f"{name}.{matrix}.{ADAPTER}.weight"] for matrix in ("lora_A", "lora_B"))
        found[f"{name}.weight"] = Adapter(a, b, float(layer.scaling[ADAPTER]))
    return found


def base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of the plain model without its adapters; tied ones come once."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(_BASE, "."), parameter.detach()


@torch.no_grad()
def merged_state(model: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A state dict of the plain model: every adapted weight with its update added.

    Sums are formed in float32 and rounded once to the type of the weight. ``values`` is a
    state to take in place of the model's own.
    """
    adapters = adapters_of(model, values)
    own = model.state_dict() if values is None else values
    state = {
        name.replace(_BASE, "."): tensor for name, tensor in own.items() if ".lora_" not in name
    }
    return state | {name: adapter.merged(state[name]) for name, adapter in adapters.items()}


def save_adapter(
    model: nn.Module, folder: Path, base: str, values: Mapping[str, Tensor] | None = None
) -> None:
    """Write the adapters alone, in the layout that PEFT, vLLM and transformers load.

    ``values`` is a state to take in place of the model's own.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous().cpu()
        for name, tensor in (model.state_dict() if values is None else values).items()
        if ".lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    describe_adapter(model, folder, base)


def describe_adapter(model: nn.Module, folder: Path, base: str) -> None:
    """Write the adapters' rank, scale and layers, as PEFT does."""
    names, layer = zip(*lora_layers(model), strict=True)
    first = layer[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.r[ADAPTER],
        "lora_alpha": first.lora_alpha[ADAPTER],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in names}),
        "inference_mode": True,
    }
    (folder / ADAPTER_FILE).write_text(json.dumps(config, indent=2) + "\n")


def described_scale(folder: Path) -> tuple[float, str]:
    """``alpha / rank`` and the base model of adapters that are described in ``folder``."""
    config = json.loads((folder / ADAPTER_FILE).read_text())
    return config["lora_alpha"] / config["r"], str(config["base_model_name_or_path"])
