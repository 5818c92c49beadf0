"""Token log-probabilities of padded rows: pack, run the trunk, read off the chosen tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.errors import ModelError
from agent_r1.models.attention import PACKED
from agent_r1.models.divergence import TeacherView, reverse_kl
from agent_r1.models.head import Head, linear_logprobs
from agent_r1.models.packing import PackedLayout, pack, sent
from agent_r1.models.sharded import compute_device, is_tied, whole


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """``[B, T]`` each, float32, 0.0 where nothing was asked for."""

    logprobs: Tensor
    entropy: Tensor | None = None
    divergence: Tensor | None = None
    """Reverse KL to a teacher, in nats."""


def token_logprobs(
    model: nn.Module,
    token_ids: Tensor,
    lengths: Tensor,
    temperature: float = 1.0,
    *,
    mask: Tensor | None = None,
    with_entropy: bool = False,
    teacher: TeacherView | None = None,
    share_prefixes: bool = True,
) -> TokenLogprobs:
    """``log p(token_ids[b, t] | token_ids[b, :t])`` of the tempered distribution.

    ``token_ids`` is ``[B, T]`` right-padded and ``lengths`` ``[B]`` says where padding
    begins; ids beyond are ignored. With ``mask`` (``[B, T]`` bool) only its positions are
    computed and all others are 0.0, which saves the output layer on prompts and tool
    text, and everything after a row's last wanted token. Position 0 has no context and is
    always 0.0. ``entropy[b, t]`` belongs to the distribution that token ``t`` was drawn
    from, and so does ``divergence[b, t]``, which is there with a ``teacher`` of the same
    rows. Differentiable; memory does not grow with vocabulary x length.

    Rows may lie on the CPU while the model is on a GPU, and better do: they are then laid out
    while the GPU still computes what it was given before. Results are on the model's device.
    """
    at = predictions(model, token_ids, lengths, mask=mask, share_prefixes=share_prefixes)
    head = head_of(model)
    logprobs, entropy = linear_logprobs(
        at.hidden, at.targets, head, temperature, with_entropy=with_entropy
    )
    divergence = None
    if teacher is not None:
        theirs = teacher.to(at.hidden.device).at(at.rows, at.columns)
        divergence = reverse_kl(at.hidden, head, theirs, temperature)
    return TokenLogprobs(
        at.scatter(logprobs),
        None if entropy is None else at.scatter(entropy),
        None if divergence is None else at.scatter(divergence),
    )


@dataclass(frozen=True, slots=True)
class Predictions:
    """The hidden states that wanted tokens are drawn from, on the model's device."""

    hidden: Tensor  # [M, D]
    targets: Tensor  # [M], the tokens themselves
    rows: Tensor  # [M]
    columns: Tensor  # [M]
    shape: torch.Size  # [B, T]

    def scatter(self, values: Tensor) -> Tensor:
        """``values[M, ...]`` to ``[B, T, ...]``, 0 elsewhere."""
        return scatter(values, self.rows, self.columns, self.shape)


def predictions(
    model: nn.Module,
    token_ids: Tensor,
    lengths: Tensor,
    *,
    mask: Tensor | None = None,
    share_prefixes: bool = True,
) -> Predictions:
    """What :func:`token_logprobs` reads its results from, for the same arguments."""
    wanted = wanted_positions(token_ids, lengths, mask)
    columns = torch.arange(token_ids.shape[1], device=token_ids.device)
    needed = (columns * wanted).amax(1)  # tokens that precede the last wanted one
    layout, states = packed_states(model, token_ids, needed, share_prefixes=share_prefixes)
    rows, columns = wanted.nonzero(as_tuple=True)
    before, targets, rows, columns = (
        sent(index, states.device)
        for index in (layout.node[rows, columns - 1], token_ids[rows, columns], rows, columns)
    )
    return Predictions(states.index_select(0, before), targets, rows, columns, token_ids.shape)


def wanted_positions(token_ids: Tensor, lengths: Tensor, mask: Tensor | None) -> Tensor:
    """``[B, T]`` bool: real tokens with a past, and inside ``mask`` if one is given."""
    columns = torch.arange(token_ids.shape[1], device=token_ids.device)
    wanted = (columns < lengths[:, None]) & (columns > 0)
    return wanted if mask is None else wanted & mask.bool()


def packed_states(
    model: nn.Module,
    token_ids: Tensor,
    lengths: Tensor,
    *,
    share_prefixes: bool = True,
    **options: Any,
) -> tuple[PackedLayout, Tensor]:
    """Last hidden states ``[N, D]`` of the first ``lengths[B]`` tokens of each row.

    The layout is on the device of the rows, the states are on the model's. ``options`` reach
    the attention function.
    """
    layout = pack(token_ids, lengths, share_prefixes=share_prefixes)
    trunk = trunk_of(model)
    rows = layout
    if layout.token_ids.numel() == 0:
        # One token whose states nobody reads: an empty batch is still a function of the
        # weights, and a rank without rows takes part in what a sharded model exchanges.
        layout = pack(token_ids.new_zeros((1, 1)), lengths.new_ones(1))
    device = compute_device(model)
    there = layout.to(device)
    # A mask with four axes is passed through untouched: transformers must not build its own.
    no_mask = torch.zeros((1, 1, 1, 1), device=device)
    output = trunk(
        input_ids=there.token_ids,
        position_ids=there.position_ids,
        attention_mask=no_mask,
        use_cache=False,
        packing=there,
        **options,
    )
    states: Tensor = output.last_hidden_state[0]
    return rows, states[: rows.token_ids.numel()]


def scatter(values: Tensor, rows: Tensor, columns: Tensor, shape: torch.Size) -> Tensor:
    """``[B, T, ...]`` of zeros with ``values[M, ...]`` at ``(rows[M], columns[M])``."""
    empty = values.new_zeros((*shape, *values.shape[1:]))
    return empty.index_put((rows, columns), values)


def trunk_of(model: nn.Module) -> nn.Module:
    """The decoder without its output layer. Raises :class:`ModelError` if it cannot pack."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != PACKED:
        raise ModelError(
            "the model does not use packed attention; load it with "
            "agent_r1.models.load.load_model, or call enable_packing(model) of that module once"
        )
    trunk: nn.Module = model.base_model  # type: ignore[assignment]
    return trunk


def head_of(model: nn.Module) -> Head:
    """The output layer with the scaling and soft-capping that the model's config asks for."""
    layer: Any = model.get_output_embeddings()  # type: ignore[operator]
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    config: Any = model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    # Of a sharded trunk that has just run, the tied table is whole.
    weight = table.weight if is_tied(model) else layer.weight
    bias = getattr(layer, "bias", None)
    gathered_bias = None if bias is None else whole(bias)
    return Head(whole(weight), gathered_bias, scale / divisor, softcap)
