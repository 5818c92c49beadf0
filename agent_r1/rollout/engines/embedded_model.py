"""Running a transformers causal language model on the flat tokens of an engine step.

The engine computes with a *twin* of the trainer's module: its own module objects and
configuration around the very same parameter tensors. So weights are shared, while the
trainer's mode, attention implementation and gradient checkpointing stay its own affair.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from agent_r1.errors import EngineError
from agent_r1.rollout.engines.embedded_attention import StepTokens
from agent_r1.rollout.engines.embedded_lean import LeanRunner, addresses, is_lean

_ATTENTION_NAME = "agent_r1_slots"
_SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})
_current = threading.local()


class Runner(Protocol):
    """Turns the tokens of a step into the logits ``[rows, V]`` of its decoding rows."""

    def forward(self, batch: StepTokens) -> Tensor: ...

    def refresh(self) -> bool:
        """Look the weights up again and derive what is derived; whether anything moved."""


class TransformersRunner:
    """Any decoder of transformers, through its own forward and our attention function."""

    def __init__(self, twin: nn.Module) -> None:
        self._twin = twin
        self._addresses = addresses(twin)
        _register_attention()
        try:
            twin.set_attn_implementation(_ATTENTION_NAME)  # type: ignore[operator]
        except (AttributeError, ValueError) as error:
            raise EngineError(
                f"{type(twin).__name__} does not let its attention be replaced ({error}); "
                "use a model class of transformers that has the attention interface"
            ) from error

    def forward(self, batch: StepTokens) -> Tensor:
        _current.batch = batch
        try:
            output = self._twin(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=torch.arange(batch.rows, device=batch.token_ids.device),
            )
        finally:
            _current.batch = None
        logits: Tensor = output.logits[0]
        return logits

    def refresh(self) -> bool:
        before, self._addresses = self._addresses, addresses(self._twin)
        return before != self._addresses


def make_runner(twin: nn.Module, dtype: torch.dtype | None = None) -> Runner:
    """The fastest runner that computes this model exactly, its matrix products in ``dtype``."""
    weights = next(twin.parameters()).dtype
    if is_lean(twin):
        return LeanRunner(twin, None if dtype == weights else dtype)
    if dtype not in (None, weights):
        raise EngineError(
            f"the embedded engine computes {type(twin).__name__} in the type of its weights "
            f"({weights}) only; set actor_rollout_ref.rollout.dtype=auto"
        )
    return TransformersRunner(twin)


class Twin:
    """A copy of the module tree in evaluation mode whose tensors are those of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        unsupported = sorted(set(_layer_types(model)) - _SUPPORTED_LAYERS)
        if unsupported:
            raise EngineError(
                f"{type(model).__name__} has layers of type {', '.join(unsupported)}, which the "
                "embedded engine does not run; use a model with full or sliding-window attention"
            )
        shared: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
        shared.update({id(tensor): tensor for tensor in model.buffers()})
        self.module: nn.Module = copy.deepcopy(model, shared).eval()
        for module in self.module.modules():
            _restore_forward(module)
        self._model = model
        first: dict[int, str] = {}
        self._tied_to = {
            name: first.setdefault(id(tensor), name)
            for name, tensor in model.named_parameters(remove_duplicate=False)
        }

    def bind(self, source: Any) -> None:
        """Use the tensors of ``source``: None for the model itself, a module, a mapping, a folder.

        Tensors on the right device in the right dtype are used as they are, others are
        converted. Nothing changes if anything is missing or does not fit.
        """
        tensors = _tensors_of(self._model if source is None else source)
        bound: dict[str, nn.Parameter] = {}
        for name, old in self.module.named_parameters(remove_duplicate=False):
            new = tensors.get(name)
            if new is not None:
                bound[name] = _fit(name, new, old)
            elif self._tied_to[name] in bound:
                bound[name] = bound[self._tied_to[name]]
            else:
                raise EngineError(f"the new weights lack {name}; load a complete state dict")
        for name, parameter in bound.items():
            path, _, leaf = name.rpartition(".")
            self.module.get_submodule(path)._parameters[leaf] = parameter


def _restore_forward(module: nn.Module) -> None:
    """Undo what :mod:`agent_r1.models` put in the place of a forward for training: it would
    still call the module that was copied.
    """
    replaced = getattr(vars(module).get("forward"), "__module__", "")
    if str(replaced).startswith("agent_r1.models."):
        del module.forward


def _fit(name: str, new: Tensor, old: nn.Parameter) -> nn.Parameter:
    if new.shape != old.shape:
        raise EngineError(
            f"{name} has shape {tuple(new.shape)} in the new weights and {tuple(old.shape)} "
            "in the engine; build a new engine for another architecture"
        )
    if isinstance(new, nn.Parameter) and new.device == old.device and new.dtype == old.dtype:
        return new
    return nn.Parameter(new.detach().to(old.device, old.dtype), requires_grad=False)


def _tensors_of(source: Any) -> Mapping[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.named_parameters(remove_duplicate=False))
    if isinstance(source, Mapping):
        return source
    if isinstance(source, (str, Path)):
        return _read_folder(Path(source))
    raise EngineError(
        f"weights cannot be loaded from {type(source).__name__}; "
        "give a module, a mapping of tensors or a checkpoint folder"
    )


def _read_folder(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(f"no .safetensors file in {folder}; give a saved model's folder")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(load_file(file))
    return tensors


def _layer_types(model: nn.Module) -> list[str]:
    config = getattr(model, "config", None)
    get_text_config = getattr(config, "get_text_config", None)
    text = get_text_config() if get_text_config else config
    return list(getattr(text, "layer_types", None) or ())


def _register_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION_NAME, _slot_attention)


def _slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: ``[1, H, T, D]`` in, ``[1, T, H, D]`` out."""
    if others.get("s_aux") is not None:
        raise EngineError("the embedded engine has no attention sinks; use another model")
    batch: StepTokens = _current.batch
    out = batch.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
        softcap,
    )
    return out[None], None
