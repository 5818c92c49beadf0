"""A short forward for the Llama family of decoders, over the modules' own parameters.

On small models the time of a step is the number of operations in it. This forward uses
about a third of those that transformers' own takes; it computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent_r1.models.fused import add_norm, compile_once, silu_product
from agent_r1.models.lora import ADAPTER, is_lora_linear
from agent_r1.rollout.engines.embedded_attention import HeadPreparation, StepTokens
from agent_r1.rollout.engines.embedded_native import Native

_FAMILIES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
_PARTS = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})


@dataclass(frozen=True, slots=True)
class _Linear:
    """A projection; its products are formed in the type of its weight."""

    weight: Tensor
    bias: Tensor | None
    adapter: tuple[Tensor, Tensor, float] | None = None
    """A ``[r, in]``, B ``[out, r]`` and the scale of a low-rank update."""

    def __call__(self, hidden: Tensor) -> Tensor:
        narrow = hidden if hidden.dtype == self.weight.dtype else hidden.to(self.weight.dtype)
        out = F.linear(narrow, self.weight, self.bias)
        if self.adapter is not None:
            a, b, scale = self.adapter
            out = torch.addmm(out, F.linear(narrow, a) * scale, b.t())
        return out if out.dtype == hidden.dtype else out.to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class _Layer:
    """The parameters of one decoder layer."""

    q: _Linear
    k: _Linear
    v: _Linear
    o: _Linear
    head_norms: tuple[Tensor, Tensor, float] | None
    norm_in: Tensor
    norm_mlp: Tensor
    eps: float
    gate: _Linear
    up: _Linear
    down: _Linear
    scale: float
    head_dim: int
    window: int | None


def addresses(model: nn.Module) -> tuple[int, ...]:
    """Where the tensors of a model are; recorded steps read them there."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))


def is_lean(model: Any) -> bool:
    """Whether :class:`LeanRunner` computes exactly this model.

    The class must be one of the family and every module unchanged but for plain low-rank
    adapters: quantised projections or hooks take the general way.
    """
    kind = type(model)
    if kind.__name__ not in _FAMILIES or not kind.__module__.startswith("transformers."):
        return False
    rope = getattr(model.config, "rope_parameters", None) or {}
    if model.config.hidden_act != "silu" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return False
    adapters = {
        id(part) for layer in model.modules() if is_lora_linear(layer) for part in layer.modules()
    }
    if any(layer.use_dora.get(ADAPTER) for layer in model.modules() if is_lora_linear(layer)):
        return False
    leaves = [m for m in model.modules() if not list(m.children()) and id(m) not in adapters]
    return (
        all(type(m) in (nn.Linear, nn.Embedding) or _is_known_leaf(m) for m in leaves)
        and all({n for n, _ in layer.named_children()} == _PARTS for layer in model.model.layers)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    )


def _is_known_leaf(module: nn.Module) -> bool:
    name = type(module).__name__
    return name.endswith(("RMSNorm", "RotaryEmbedding")) or "Activation" in name or name == "SiLU"


class LeanRunner:
    """Implements ``Runner`` for the models that :func:`is_lean` accepts.

    With another ``dtype`` than the weights have, projections are done in it, on copies that
    every :meth:`refresh` renews; norms, residuals, keys and values stay as they are. That
    is what autocast does in the trainer.
    """

    def __init__(self, twin: Any, dtype: torch.dtype | None = None) -> None:
        self._twin = twin
        self._dtype = dtype
        self._addresses: tuple[int, ...] = ()
        self.refresh()

    def refresh(self) -> bool:
        """Look the parameters up again; looking them up at every step costs a tenth of it."""
        before, self._addresses = self._addresses, addresses(self._twin)
        self._layers = [_layer(layer, self._linear) for layer in self._twin.model.layers]
        self._head = self._linear(self._twin.lm_head)
        return self._dtype is not None or before != self._addresses

    def _linear(self, module: Any) -> _Linear:
        adapter = None
        if is_lora_linear(module):
            a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            adapter = (self._cast(a), self._cast(b), float(module.scaling[ADAPTER]))
            module = module.base_layer
        bias = None if module.bias is None else self._cast(module.bias)
        return _Linear(self._cast(module.weight), bias, adapter)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor if self._dtype is None else tensor.detach().to(self._dtype)

    def forward(self, batch: StepTokens) -> Tensor:
        base = self._twin.model
        hidden = F.embedding(batch.token_ids, base.embed_tokens.weight)
        cos, sin = base.rotary_emb(hidden, batch.positions[None])
        native = batch.native if hidden.dtype == torch.float32 else None
        delta: Tensor | None = None
        for index, layer in enumerate(self._layers):
            hidden, normed = _add_norm(native, hidden, delta, layer.norm_in, layer.eps)
            heads = (len(hidden), -1, layer.head_dim)
            out = batch.attend(
                index,
                layer.q(normed).view(heads),
                layer.k(normed).view(heads),
                layer.v(normed).view(heads),
                layer.scale,
                layer.window,
                prepare=HeadPreparation(layer.head_norms, cos[0], sin[0]),
            )
            attended = layer.o(out.view(len(hidden), -1))
            hidden, normed = _add_norm(native, hidden, attended, layer.norm_mlp, layer.eps)
            delta = layer.down(_gated(native, layer.gate(normed), layer.up(normed)))
        rows, norm = batch.rows, base.norm
        last = None if delta is None else delta[:rows]
        final = _add_norm(native, hidden[:rows], last, norm.weight, norm.variance_epsilon)[1]
        return self._head(final)


def _layer(module: Any, linear: Callable[[Any], _Linear]) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    return _Layer(
        q=linear(attention.q_proj),
        k=linear(attention.k_proj),
        v=linear(attention.v_proj),
        o=linear(attention.o_proj),
        head_norms=_head_norms(attention),
        norm_in=module.input_layernorm.weight,
        norm_mlp=module.post_attention_layernorm.weight,
        eps=module.input_layernorm.variance_epsilon,
        gate=linear(mlp.gate_proj),
        up=linear(mlp.up_proj),
        down=linear(mlp.down_proj),
        scale=attention.scaling,
        head_dim=attention.head_dim,
        window=_window(attention),
    )


def _head_norms(attention: Any) -> tuple[Tensor, Tensor, float] | None:
    """Qwen3 normalises the heads of queries and keys."""
    q_norm = getattr(attention, "q_norm", None)
    if q_norm is None:
        return None
    return q_norm.weight, attention.k_norm.weight, q_norm.variance_epsilon


def _window(attention: Any) -> int | None:
    """Mistral reads its window from the configuration, the Qwens from the layer."""
    holder = attention if hasattr(attention, "sliding_window") else attention.config
    window: int | None = getattr(holder, "sliding_window", None)
    return window


def _add_norm(
    native: Native | None, hidden: Tensor, delta: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``hidden[T, D]`` with ``delta`` added, on a CPU in place; and its normalised form."""
    if native is not None:
        return hidden, native.add_norm(hidden, delta, weight, eps)
    if delta is not None and hidden.is_cuda:
        both: tuple[Tensor, Tensor] = compile_once(add_norm)(hidden, delta, weight, eps)
        return both
    if delta is not None:
        hidden += delta
    return hidden, F.rms_norm(hidden, weight.shape, weight, eps)


def _gated(native: Native | None, gate: Tensor, up: Tensor) -> Tensor:
    if native is not None:
        return native.silu_mul(gate, up)
    if gate.is_cuda:
        product: Tensor = compile_once(silu_product)(gate, up)
        return product
    return F.silu(gate).mul_(up)
