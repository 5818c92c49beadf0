"""Keys and values of the sequences that the embedded engine holds, one slot each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LENGTH_STEP = 64


class SlotCache:
    """One tensor of keys and one of values per layer, ``[slots, heads, length, head_dim]``.

    A slot belongs to one sequence; the entries of a sequence start at position 0 and are
    dense. Layers come into being when they are first asked for, so head counts may differ
    between them. Slots and length grow on demand, up to limits that the caller keeps.
    Memory is zeroed: masked entries are multiplied by 0, and 0 times garbage may be NaN.

    With ``fixed`` everything is made at its full size at once, so that tensors stay where they
    are until :meth:`clear`, and there is one slot more, :attr:`spare`, which belongs to nobody:
    rows that only fill up a batch write there.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        max_slots: int,
        *,
        fixed: bool = False,
    ) -> None:
        self.slots = 0
        self.length = 0
        self.generation = 0
        """Changes whenever tensors are made anew."""
        self._fixed = fixed
        self._device = device
        self._dtype = dtype
        # Kernels of a GPU want rows of keys that are aligned; growing caches stay on the limit.
        aligned = -(-max_length // _LENGTH_STEP) * _LENGTH_STEP
        self._max_length = aligned if fixed else max_length
        self._max_slots = max_slots
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, heads: int, key_dim: int, value_dim: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer, as they are stored."""
        if index not in self._layers:
            self._layers[index] = (
                self._zeros(self.slots, heads, key_dim),
                self._zeros(self.slots, heads, value_dim),
            )
        return self._layers[index]

    def reserve(self, slots: int, length: int) -> None:
        """Make room for slots ``0..slots-1`` and positions ``0..length-1``.

        Both grow by at least half, so that the copies amount to a constant per entry.
        """
        if slots <= self.slots and length <= self.length:
            return
        old_slots, old_length = self.slots, self.length
        self.generation += 1
        if self._fixed:
            slots, length = self._max_slots, self._max_length
        if slots > self.slots:
            self.slots = min(max(slots, self.slots + self.slots // 2), self._max_slots)
        if length > self.length:
            wanted = max(length, self.length + self.length // 2)
            self.length = min(-(-wanted // _LENGTH_STEP) * _LENGTH_STEP, self._max_length)
        for index, pair in self._layers.items():
            self._layers[index] = (
                self._grown(pair[0], old_slots, old_length),
                self._grown(pair[1], old_slots, old_length),
            )

    def copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """Copy the first ``length`` positions of slots; all are read before any is written."""
        if not source:
            return
        read = torch.tensor(source, device=self._device)
        write = torch.tensor(target, device=self._device)
        for pair in self._layers.values():
            for tensor in pair:
                part = tensor[:, :, :length]
                part.index_copy_(0, write, part.index_select(0, read))

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self._layers.clear()
        self.slots = self.length = 0
        self.generation += 1

    @property
    def spare(self) -> int:
        """The slot that belongs to nobody."""
        return self.slots

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def _grown(self, old: Tensor, slots: int, length: int) -> Tensor:
        new = self._zeros(self.slots, old.shape[1], old.shape[3])
        new[:slots, :, :length] = old[:slots]
        return new

    def _zeros(self, slots: int, heads: int, dim: int) -> Tensor:
        shape = (slots + self._fixed, heads, self.length, dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)
