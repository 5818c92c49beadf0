"""Trajectories as tensors, and batches cut to a token budget.

Rows are right-padded training samples. What is padding is decided by ``lengths`` and
what is trained on by ``loss_mask``, which comes from the structure of the turns; the
padding id itself never carries meaning, so a model whose padding token is also its
end-of-sequence token loses nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent_r1.errors import RecordError
from agent_r1.types import TrainSample, Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """Training samples ``[B, T]`` and what the algorithms need to know of each row.

    Token ``t``'s log-probability sits at index ``t``: ``logprobs[b, t] =
    log p(token_ids[b, t] | token_ids[b, :t])``, so that index 0 is never trained on.
    A trajectory whose history was edited has several rows; its reward is repeated on
    each of them, and ``trajectory_id`` tells that they are one.
    """

    token_ids: Tensor  # [B, T] int64
    lengths: Tensor  # [B] int64, 0 for a padding row
    loss_mask: Tensor  # [B, T] bool, True where the model sampled the token
    behavior_logprobs: Tensor  # [B, T] float32, of the distribution that was sampled from
    turn_index: Tensor  # [B, T] int64, -1 where the model did not write
    version: Tensor  # [B, T] int64, of the policy that sampled the token, or -1
    reward: Tensor  # [B] float32
    turn_reward: Tensor | None  # [B, K] float32, NaN where a turn has no process reward
    group_id: Tensor  # [B] int64, equal for siblings of one task
    trajectory_id: Tensor  # [B] int64
    segment: Tensor  # [B] int64, index of the row within its trajectory
    terminated: Tensor  # [B] bool
    truncated: Tensor  # [B] bool

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def tokens(self) -> int:
        """Number of real tokens, padding not counted."""
        return int(self.lengths.sum())

    @staticmethod
    def from_trajectories(
        trajectories: Iterable[Trajectory], pad_id: int, *, drop_unusable: bool = False
    ) -> Batch:
        """Lay out every sample of every trajectory as one row.

        Ids are mapped to integers in order of first appearance. A trajectory without a
        turn gives no row. A failed or unscored trajectory raises :class:`RecordError`
        unless ``drop_unusable`` says that leaving it out is intended; it never counts
        as a reward of 0.
        """
        kept = [t for t in trajectories if _usable(t, drop_unusable)]
        rows = [
            (trajectory, segment, sample)
            for trajectory in kept
            for segment, sample in enumerate(trajectory.samples())
        ]
        if not rows:
            raise RecordError("no trajectory to train on: every one failed, is unscored or empty")
        samples = [sample for _, _, sample in rows]
        owners = [trajectory for trajectory, _, _ in rows]
        _check_first_tokens(rows)
        return Batch(
            token_ids=_stack([s.token_ids for s in samples], pad_id, torch.int64),
            lengths=torch.tensor([len(s.token_ids) for s in samples]),
            loss_mask=_stack([s.loss_mask for s in samples], 0, torch.bool),
            behavior_logprobs=_stack(_behavior_logprobs(rows), 0.0, torch.float32),
            turn_index=_stack([s.turn_index for s in samples], -1, torch.int64),
            version=_stack([s.versions for s in samples], -1, torch.int64),
            reward=torch.tensor([_reward(t) for t in owners], dtype=torch.float32),
            turn_reward=_turn_rewards(owners),
            group_id=_integers([t.group_id for t in owners]),
            trajectory_id=_integers([t.id for t in owners]),
            segment=torch.tensor([segment for _, segment, _ in rows]),
            terminated=torch.tensor([t.outcome.terminated for t in owners]),
            truncated=torch.tensor([t.outcome.truncated for t in owners]),
        )

    def select(self, index: Tensor) -> Batch:
        """The rows ``index`` (integers or a boolean mask), as wide as the longest of them.

        Of no rows it is one column wide, so that what reduces over columns can.
        """
        lengths = self.lengths[index]
        width = int(lengths.max()) if lengths.numel() else 1
        return self._map(lambda tensor: tensor[index], width)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device), self.token_ids.shape[1])

    def padded(self, rows: int) -> Batch:
        """``rows`` rows in all: zero-length, zero-mask rows are added at the end.

        They belong to no group and no trajectory (id -1) and change no result; data
        parallelism needs them because every rank must hold the same number of rows.
        """
        extra = rows - len(self)
        if extra < 0:
            raise RecordError(f"cannot pad {len(self)} rows to {rows}; ask for at least as many")
        fill = dict.fromkeys(("group_id", "trajectory_id", "turn_index", "version"), -1.0)
        fill["turn_reward"] = math.nan
        padded = {
            name: torch.cat(
                [tensor, tensor.new_full((extra, *tensor.shape[1:]), fill.get(name, 0))]
            )
            for name, tensor in self._tensors()
        }
        return dataclasses.replace(self, **padded)

    def micro_batches(self, max_tokens: int) -> list[Tensor]:
        """Row indices cut into batches of at most ``max_tokens`` real tokens each.

        Rows are taken in order of group and trajectory, so that siblings stay together
        (they share a prompt, which packing then computes once), and the cuts are placed
        so that the largest batch is as small as the number of batches allows. A row
        longer than the budget gets a batch of its own.
        """
        return token_budget_batches(self.lengths, self._order(), max_tokens)

    def split(self, parts: int) -> list[Tensor]:
        """Row indices cut into ``parts`` of nearly the same number of real tokens.

        Siblings stay together as in :meth:`micro_batches`, except where a cut goes through a
        group. The largest part is as small as that order allows; some may have no row.
        """
        return balanced_runs(self.lengths, self._order(), parts)

    def _order(self) -> list[int]:
        keys = zip(
            self.group_id.tolist(), self.trajectory_id.tolist(), self.segment.tolist(), strict=True
        )
        return [row for _, row in sorted((key, row) for row, key in enumerate(keys))]

    def _tensors(self) -> list[tuple[str, Tensor]]:
        pairs = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        return [(name, tensor) for name, tensor in pairs if tensor is not None]

    def _map(self, change: Callable[[Tensor], Tensor], width: int) -> Batch:
        wide = ("token_ids", "loss_mask", "behavior_logprobs", "turn_index", "version")
        changed = {
            name: change(tensor[:, :width] if name in wide else tensor)
            for name, tensor in self._tensors()
        }
        return dataclasses.replace(self, **changed)


def token_budget_batches(lengths: Tensor, order: Sequence[int], max_tokens: int) -> list[Tensor]:
    """Cut ``order`` into contiguous runs whose summed ``lengths`` stay within ``max_tokens``.

    Of all cuts with the fewest runs, one whose largest run is smallest (found by
    bisection over the capacity). A row longer than the budget is a run of its own.
    """
    if max_tokens < 1:
        raise RecordError(f"the token budget of a micro-batch must be positive, not {max_tokens}")
    sizes = lengths.tolist()
    fewest = len(_fill(sizes, order, max_tokens))
    low, high = 1, max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_fill(sizes, order, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    device = lengths.device
    return [torch.tensor(run, device=device) for run in _fill(sizes, order, high)]


def balanced_runs(lengths: Tensor, order: Sequence[int], parts: int) -> list[Tensor]:
    """Cut ``order`` into ``parts`` contiguous runs, the largest sum of ``lengths`` smallest."""
    sizes = lengths.tolist()
    low, high = 1, max(1, sum(sizes))
    while low < high:
        middle = (low + high) // 2
        if len(_fill(sizes, order, middle)) <= parts and max(sizes) <= middle:
            high = middle
        else:
            low = middle + 1
    runs = _fill(sizes, order, high)
    runs += [[] for _ in range(parts - len(runs))]
    return [torch.tensor(run, dtype=torch.int64, device=lengths.device) for run in runs]


def _fill(sizes: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    runs: list[list[int]] = []
    load = 0
    for row in order:
        if not runs or (load and load + sizes[row] > capacity):
            runs.append([])
            load = 0
        runs[-1].append(row)
        load += sizes[row]
    return runs


def _usable(trajectory: Trajectory, drop_unusable: bool) -> bool:
    problem = None
    if trajectory.outcome.failed:
        problem = f"failed ({trajectory.outcome}: {trajectory.error})"
    elif trajectory.reward is None:
        problem = f"has no reward ({trajectory.error or 'it was never scored'})"
    if problem is None or drop_unusable:
        return problem is None
    raise RecordError(
        f"trajectory {trajectory.id} {problem} and cannot be trained on; "
        "leave it out, or pass drop_unusable=True"
    )


def _check_first_tokens(rows: Sequence[tuple[Trajectory, int, TrainSample]]) -> None:
    for trajectory, segment, sample in rows:
        if sample.loss_mask and sample.loss_mask[0]:
            raise RecordError(
                f"trajectory {trajectory.id}, sample {segment}: the model wrote the very first "
                "token, which has no probability without a context; give it a prompt"
            )


def _behavior_logprobs(
    rows: Sequence[tuple[Trajectory, int, TrainSample]],
) -> list[tuple[float, ...]]:
    found = []
    for trajectory, _, sample in rows:
        if sample.behavior_logprobs is None:
            raise RecordError(
                f"trajectory {trajectory.id} has no log-probabilities: it was sampled by an engine "
                "that gives none (a server) and serves evaluation only; sample what is trained on "
                "with actor_rollout_ref.rollout.name=embedded"
            )
        found.append(sample.behavior_logprobs)
    return found


def _reward(trajectory: Trajectory) -> float:
    assert trajectory.reward is not None  # _usable saw to it
    return trajectory.reward.value


def _turn_rewards(owners: Sequence[Trajectory]) -> Tensor | None:
    """``[B, K]`` process rewards, or None when no trajectory has any."""
    values = [None if t.reward is None else t.reward.per_turn for t in owners]
    if all(value is None for value in values):
        return None
    for trajectory, value in zip(owners, values, strict=True):
        if value is not None and len(value) != len(trajectory.turns):
            raise RecordError(
                f"trajectory {trajectory.id} has {len(trajectory.turns)} turns but {len(value)} "
                "process rewards; the reward function must give one for every turn, or none"
            )
    return _stack([value or () for value in values], math.nan, torch.float32)


def _stack(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
    """Right-pad ``rows`` into one ``[B, T]`` tensor."""
    stacked = torch.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=dtype)
    return stacked


def _integers(names: Sequence[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])
