"""The elementwise parts of a decoder in few kernels, for GPUs.

Between its matrix products a transformer block normalises, rotates and gates. Written as
single tensor operations these take as long as the products on a current card, because each
reads and writes whole activations. Here a norm is torch's own fused one, and rotation and
gating are each compiled into one kernel per direction (``torch.compile``). They round once
where the single operations round at each step; a module whose fused form differs by more
than that on a small input is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agent_r1.models.attention import PACKED, packed_attention_forward

PRODUCT = "agent_r1_product"
"""Attribute of a gated block: the function of gate and up projection before the last layer."""
FUSED = "agent_r1_fused"
"""Attribute of a norm that stores no more than its input, so that recomputing is pointless."""
_ATTENTION = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"})
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference relative to the largest output: a few roundings of the type."""

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel for all sizes of the input; the function itself where Triton is missing or the
    environment says ``AGENT_R1_FUSED=0``.
    """
    from torch.utils._triton import has_triton

    if os.environ.get("AGENT_R1_FUSED") == "0" or not has_triton():
        return function
    result: Callable[..., Any] = torch.compile(function, dynamic=True)
    return result


@cache
def compile_once(function: Callable[..., Any], compile_: Compile = compiled) -> Callable[..., Any]:
    """Compiled once per process, not once per layer."""
    return compile_(function)


def fuse_elementwise(model: nn.Module, *, compile_: Compile = compiled) -> int:
    """Fuse norms, gated blocks and rotary attention of ``model``; returns how many.

    Call it before adapters are added: the functions look projections up at each call.
    """
    changed = 0
    for module in list(model.modules()):
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            changed += _fuse_norm(module)
        elif is_gated(module) and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            _fuse_gated(module, compile_once(silu_product, compile_))
            changed += 1
        elif kind in _ATTENTION and type(module).__module__.startswith("transformers."):
            module.forward = _attention_forward(module, compile_once(rotate, compile_))
            changed += 1
    return changed


@torch.no_grad()
def is_gated(module: Any) -> bool:
    """Whether a block computes ``down(act(gate(x)) * up(x))``: by its parts and on an input."""
    names = ("gate_proj", "up_proj", "down_proj")
    parts = [getattr(module, name, None) for name in names]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    if not callable(getattr(module, "act_fn", None)) or len(linear) < len(names):
        return False
    gate, up, down = linear
    if gate.weight.is_meta:
        return False
    width = gate.weight.shape[1]
    probe = torch.linspace(-1, 1, 2 * width, device=gate.weight.device).view(1, 2, width)
    probe = probe.to(gate.weight.dtype)
    found = down(module.act_fn(gate(probe)) * up(probe))
    return torch.equal(type(module).forward(module, probe), found)


def _fuse_gated(mlp: Any, product: Callable[..., Any]) -> None:
    def forward(hidden: Tensor) -> Tensor:
        result: Tensor = mlp.down_proj(product(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
        return result

    mlp.forward = forward
    setattr(mlp, PRODUCT, product)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    return F.silu(gate) * up


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of ``[1, H, N, D]``.

    ``cos`` and ``sin`` are ``[1, N, D]``; halves of a head are the two coordinates.
    """
    half = query.shape[-1] // 2
    turn = torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, None]
    cos = cos[:, None]
    return (
        query * cos + torch.cat([query[..., half:], query[..., :half]], -1) * turn,
        key * cos + torch.cat([key[..., half:], key[..., :half]], -1) * turn,
    )


def prepare_heads(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Norms (where there are weights) and rotation of flat tokens ``[T, H, D]``."""
    if q_weight is not None and k_weight is not None:
        query = _rms(query, q_weight, eps)
        key = _rms(key, k_weight, eps)
    half = sin.shape[-1] // 2
    turn = torch.cat([-sin[:, :half], sin[:, half:]], -1)[:, None]
    cos = cos[:, None]
    return (
        query * cos + torch.cat([query[..., half:], query[..., :half]], -1) * turn,
        key * cos + torch.cat([key[..., half:], key[..., :half]], -1) * turn,
    )


def add_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``hidden + delta`` and its normalised form, ``[T, D]`` each."""
    hidden = hidden + delta
    return hidden, _rms(hidden, weight, eps)


def _rms(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = hidden.float()
    scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    return (exact * scale).to(hidden.dtype) * weight


def _fuse_norm(norm: Any) -> bool:
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    weight = getattr(norm, "weight", None)
    if eps is None or weight is None:
        return False

    def forward(hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight, eps)

    probe = torch.linspace(-2, 3, 2 * weight.numel(), device=weight.device).to(weight.dtype)
    if not _agree(norm.forward, forward, probe.view(2, -1)):
        return False
    norm.forward = forward
    setattr(norm, FUSED, True)
    return True


@torch.no_grad()
def _agree(plain: Callable[[Tensor], Tensor], fused: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    expected = plain(x).float()
    off = (fused(x).float() - expected).abs().max()
    return bool(off <= _TOLERANCE.get(x.dtype, 1e-9) * expected.abs().max())


def _attention_forward(attention: Any, turn: Callable[..., Any]) -> Callable[..., Any]:
    plain = attention.forward

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        chosen = attention.config._attn_implementation
        if past_key_values is not None or chosen != PACKED:
            result: tuple[Tensor, Tensor | None] = plain(
                hidden_states,
                position_embeddings,
                attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            return result
        heads = (*hidden_states.shape[:-1], -1, attention.head_dim)
        query, key, value = (
            getattr(attention, name)(hidden_states).view(heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = turn(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)
        window = getattr(attention, "sliding_window", None)
        if type(attention).__name__ == "MistralAttention":
            window = getattr(attention.config, "sliding_window", None)
        out, weights = packed_attention_forward(
            attention,
            query,
            key,
            value.transpose(1, 2),
            attention_mask,
            scaling=attention.scaling,
            sliding_window=window,
            **kwargs,
        )
        return attention.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights

    return forward
