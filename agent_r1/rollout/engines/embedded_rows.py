"""The state of the decode rows as arrays, so that a step treats all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_r1.rollout.engines.embedded_sampler import RowSampling
from agent_r1.rollout.engines.embedded_schedule import Tracked

_SEED_MASK = (1 << 64) - 1


class RowArrays:
    """One entry per slot, ``[S]``; the first ``n`` belong to the ``n`` decoding rows."""

    def __init__(self) -> None:
        self.token = np.zeros(0, np.int64)
        """The token that the row feeds next."""
        self.position = np.zeros(0, np.int64)
        """The position of that token: how many tokens the slot's cache holds."""
        self.count = np.zeros(0, np.int64)
        """How many tokens were sampled in this call."""
        self.limit = np.zeros(0, np.int64)
        self.seed = np.zeros(0, np.uint64)
        self.temperature = np.zeros(0, np.float64)
        self.top_k = np.zeros(0, np.int64)
        self.top_p = np.zeros(0, np.float64)
        self.stop_set = np.zeros(0, np.int64)
        self.sampled = np.zeros((0, 0), np.int64)  # [S, longest completion]
        self.logprobs = np.zeros((0, 0), np.float32)  # [S, longest completion]

    def reserve(self, slots: int, completion: int) -> None:
        """Make room for this many slots and tokens of a completion."""
        if slots > len(self.token):
            size = max(slots, 2 * len(self.token))
            for name, array in vars(self).items():
                setattr(self, name, _grown(array, (size, *array.shape[1:])))
        if completion > self.sampled.shape[1]:
            shape = (len(self.token), max(completion, 2 * self.sampled.shape[1]))
            self.sampled = _grown(self.sampled, shape)
            self.logprobs = _grown(self.logprobs, shape)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        read, write = np.asarray(source, np.intp), np.asarray(target, np.intp)
        for array in vars(self).values():
            array[write] = array[read]

    def enter(self, sequence: Tracked, stop_set: int) -> None:
        """Start a row in the sequence's slot: its prompt's last token is fed next."""
        assert sequence.slot is not None and sequence.request is not None
        slot, params = sequence.slot, sequence.request.params
        self.token[slot] = sequence.tokens[-1]
        self.position[slot] = len(sequence.tokens) - 1
        self.count[slot] = 0
        self.limit[slot] = sequence.request.limit
        self.seed[slot] = params.seed & _SEED_MASK
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.stop_set[slot] = stop_set

    def sampling(self, rows: int) -> RowSampling:
        return RowSampling(
            self.seed[:rows],
            self.count[:rows],
            self.temperature[:rows],
            self.top_k[:rows],
            self.top_p[:rows],
        )

    def append(self, tokens: NDArray[np.int64], logprobs: NDArray[np.float32]) -> None:
        """Record one sampled token for each of the first ``len(tokens)`` rows."""
        rows = len(tokens)
        index, count = np.arange(rows), self.count[:rows]
        self.sampled[index, count] = tokens
        self.logprobs[index, count] = logprobs
        self.token[:rows] = tokens
        self.count[:rows] += 1
        self.position[:rows] += 1


def _grown(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    new = np.zeros(shape, array.dtype)
    new[tuple(slice(0, size) for size in array.shape)] = array
    return new
