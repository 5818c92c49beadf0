"""The critic: a decoder with a scalar head, aligned with the log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from agent_r1.models.load import load_model
from agent_r1.models.logprobs import packed_states, scatter, trunk_of, wanted_positions
from agent_r1.models.packing import sent
from agent_r1.models.sharded import whole


@dataclass(frozen=True, slots=True)
class Values:
    """What a critic says of a batch.

    ``tokens[b, t]`` is V of the state in which token ``t`` was chosen, that is, of all
    tokens before it; 0.0 where nothing was asked for. ``final[b]`` is V of the state after
    the row's last token, which bootstraps a trajectory that was cut short.
    """

    tokens: Tensor  # [B, T] float32
    final: Tensor  # [B] float32


class ValueModel(nn.Module):
    """A transformers decoder (of a causal language model that packs) and one linear output.

    The head starts at zero, so that the first values are 0 and not noise of a random
    projection; after the first update the gradient reaches the decoder too.
    """

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk_of(language_model)
        config: Any = language_model.config
        self.config = config
        weight: Tensor = language_model.get_input_embeddings().weight  # type: ignore[operator]
        width = int(config.hidden_size)
        self.head = nn.Linear(width, 1, dtype=weight.dtype, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def base_model(self) -> nn.Module:
        """The decoder, under the name that transformers gives it."""
        return self.trunk

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table, as transformers models tell it."""
        table: nn.Module = self.trunk.get_input_embeddings()  # type: ignore[operator]
        return table

    def get_output_embeddings(self) -> None:
        """A critic has no output layer over the vocabulary."""
        return None

    def values(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        *,
        mask: Tensor | None = None,
        share_prefixes: bool = True,
    ) -> Values:
        """Values of rows ``token_ids[B, T]``; see :class:`Values` for the alignment."""
        wanted = wanted_positions(token_ids, lengths, mask)
        layout, states = packed_states(self, token_ids, lengths, share_prefixes=share_prefixes)
        weight, bias = whole(self.head.weight), whole(self.head.bias)
        scores = linear(states, weight.to(states.dtype), bias.to(states.dtype)).squeeze(-1)  # [N]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        rows, columns = wanted.nonzero(as_tuple=True)
        present = lengths.nonzero().squeeze(1)
        before, ends, rows, columns, present = (
            sent(index, scores.device)
            for index in (
                layout.node[rows, columns - 1],
                layout.node[present, lengths[present] - 1],
                rows,
                columns,
                present,
            )
        )
        tokens, last = scores.index_select(0, before), scores.index_select(0, ends)
        final = last.new_zeros(len(lengths)).index_put((present,), last)
        return Values(scatter(tokens, rows, columns, token_ids.shape), final)


def load_value_model(path: str | Path, **options: Any) -> ValueModel:
    """A critic that starts from the decoder of the model folder ``path``.

    ``options`` are those of :func:`agent_r1.models.load.load_model`.
    """
    return ValueModel(load_model(path, **options))
