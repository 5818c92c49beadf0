"""What the advantage estimators read, and the action tokens in the order they were taken.

Estimators think in episodes: one trajectory is one episode, whatever number of rows
(segments) it was cut into because its history was edited, and whatever tool tokens lie
between its actions. :func:`unroll` turns padded rows ``[B, T]`` into actions ``[E, K]``
(E episodes of up to K action tokens, right-padded, in time order). There a mask is no
longer needed, so that no estimator can misplace a reward or a value on a tool token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent_r1.errors import RecordError


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """One global batch. Floating tensors share a dtype and everything shares a device.

    A row is one segment of a trajectory; its scalars (``reward``, ``group_id``,
    ``turn_reward`` …) are those of the trajectory, repeated. Rows with an empty
    ``loss_mask`` are padding: they take part in nothing unless ``counted`` says so.
    """

    loss_mask: Tensor
    """[B, T] bool: the model sampled this token and it is trained on."""
    reward: Tensor
    """[B] outcome reward of the trajectory."""
    group_id: Tensor
    """[B] int64: siblings sampled for one task share it."""
    trajectory_id: Tensor
    """[B] int64: rows of one trajectory share it."""
    segment: Tensor
    """[B] int64: order of the rows within their trajectory."""
    turn_index: Tensor
    """[B, T] int64: turn of the trajectory that wrote the token, -1 where none did."""
    turn_reward: Tensor | None = None
    """[B, K] process reward of turn k of the trajectory. NaN: that turn has none."""
    values: Tensor | None = None
    """[B, T] V of the state in which token t was chosen (before it, aligned as logprobs)."""
    token_reward: Tensor | None = None
    """[B, T] reward added to single tokens, as the KL penalty in the reward."""
    teacher_gap: Tensor | None = None
    """[B, T] log-probability of the token by the teacher less that by the student."""
    terminated: Tensor | None = None
    """[B] bool: the episode ended by itself."""
    truncated: Tensor | None = None
    """[B] bool: the episode was cut and continues in the eyes of the critic."""
    bootstrap_value: Tensor | None = None
    """[B] V of the state after the trajectory's last action; read on truncated rows."""
    greedy_reward: Tensor | None = None
    """[B] reward of the greedy rollout of the same task (ReMax)."""
    state_id: Tensor | None = None
    """[B, K] int64: equal numbers mean that turn k was taken in the same state (GiGPO)."""
    counted: Tensor | None = None
    """[B] bool: the trajectory's reward enters baselines. Default: it has loss tokens."""

    def __post_init__(self) -> None:
        b, t = self.loss_mask.shape
        expected: tuple[tuple[str, tuple[int, ...]], ...] = (
            *((name, (b,)) for name in _PER_ROW),
            *((name, (b, t)) for name in _PER_TOKEN),
        )
        for name, shape in expected:
            value: Tensor | None = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise RecordError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        for name in ("turn_reward", "state_id"):
            value = getattr(self, name)
            if value is not None and (value.dim() != 2 or value.shape[0] != b):
                raise RecordError(f"{name} has shape {tuple(value.shape)}, expected ({b}, K)")


_PER_ROW = (
    "reward",
    "group_id",
    "trajectory_id",
    "segment",
    "terminated",
    "truncated",
    "bootstrap_value",
    "greedy_reward",
    "counted",
)
_PER_TOKEN = ("turn_index", "values", "token_reward", "teacher_gap")


@dataclass(frozen=True, slots=True)
class AdvantageResult:
    """Both ``[B, T]`` and 0 outside of the loss mask; ``returns`` is what a critic learns."""

    advantages: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Episodes:
    """The batch by trajectory: E episodes of up to K action tokens in time order."""

    row: Tensor
    """[E] one row that speaks for the episode (its scalars are the trajectory's)."""
    counted: Tensor
    """[E] bool: the episode takes part in baselines."""
    position: Tensor
    """[E, K] int64 flat index into ``[B * T]`` of each action token; 0 where absent."""
    present: Tensor
    """[E, K] bool."""
    slot: Tensor
    """[E, K] int64: turns counted 0, 1, 2 … within the episode; 0 where absent."""
    turn: Tensor
    """[E, S] int64: the trajectory's own number of the turn in each slot; -1 where absent."""
    shape: tuple[int, int]
    """(B, T) of the batch."""

    def of_rows(self, per_row: Tensor) -> Tensor:
        """[B, …] to [E, …] for what is repeated on every row of a trajectory."""
        return per_row[self.row]

    def gather(self, per_token: Tensor) -> Tensor:
        """[B, T] to [E, K]; 0 where absent."""
        taken = per_token.reshape(-1)[self.position]
        return torch.where(self.present, taken, torch.zeros_like(taken))

    def scatter(self, per_action: Tensor) -> Tensor:
        """[E, K] (or [E, 1]) to [B, T]; 0 on every token that is not an action."""
        values = per_action.expand(self.present.shape)
        flat = torch.zeros(self.shape[0] * self.shape[1], dtype=values.dtype, device=values.device)
        flat[self.position[self.present]] = values[self.present]
        return flat.reshape(self.shape)

    def turn_sum(self, per_action: Tensor) -> Tensor:
        """[E, K] to [E, S]: what the tokens of each turn add up to."""
        kept = torch.where(self.present, per_action, torch.zeros_like(per_action))
        zeros = torch.zeros(self.turn.shape, dtype=kept.dtype, device=kept.device)
        return zeros.scatter_add(1, self.slot, kept)

    def spread(self, per_turn: Tensor) -> Tensor:
        """[E, S] to [E, K]: every token of a turn receives the turn's number."""
        return per_turn.gather(1, self.slot)

    @property
    def turn_present(self) -> Tensor:
        """[E, S] bool."""
        return self.turn >= 0

    @property
    def is_last(self) -> Tensor:
        """[E, K] bool: the last action token of the episode, where the outcome belongs."""
        return self.present & ~_shifted(self.present)

    @property
    def is_turn_end(self) -> Tensor:
        """[E, K] bool: the last action token of each turn."""
        next_slot = torch.cat([self.slot[:, 1:], self.slot[:, -1:]], 1)
        return self.present & (~_shifted(self.present) | (next_slot != self.slot))

    @property
    def is_turn_start(self) -> Tensor:
        """[E, K] bool: the first action token of each turn."""
        end = self.is_turn_end
        first = torch.ones_like(end[:, :1])
        return self.present & torch.cat([first, end[:, :-1]], 1)[:, : end.shape[1]]


def unroll(inputs: AdvantageInputs) -> Episodes:
    """Collect the action tokens of each trajectory in time order, across its segments.

    Raises:
        RecordError: rows of one trajectory disagree about its reward or its group, or an
            action token belongs to no turn.
    """
    mask = inputs.loss_mask.bool()
    active = mask.any(1)
    if inputs.counted is not None:
        active = active | inputs.counted.bool()
    _, episode = torch.unique(inputs.trajectory_id, return_inverse=True)
    count = int(episode.max()) + 1 if episode.numel() else 0
    row = _representative(episode, active, count)
    _check_agreement(inputs, episode, active, row)
    order = _time_order(episode, inputs.segment)
    rows, columns = mask[order].nonzero(as_tuple=True)
    rows = order[rows]
    owner = episode[rows]
    lengths = torch.bincount(owner, minlength=count)
    width = int(lengths.max()) if count else 0
    place = torch.arange(len(owner), device=owner.device) - (lengths.cumsum(0) - lengths)[owner]
    position = torch.zeros((count, width), dtype=torch.int64, device=mask.device)
    position[owner, place] = rows * mask.shape[1] + columns
    present = torch.arange(width, device=mask.device) < lengths[:, None]
    if bool((inputs.turn_index[mask] < 0).any()):
        raise RecordError(
            "turn_index is negative at a token of the loss mask; every action has a turn"
        )
    slot, turn = _turn_slots(inputs.turn_index.reshape(-1)[position], present)
    counted = active[row] if inputs.counted is None else inputs.counted.bool()[row]
    return Episodes(row, counted, position, present, slot, turn, (mask.shape[0], mask.shape[1]))


def _representative(episode: Tensor, active: Tensor, count: int) -> Tensor:
    """[E] a row of each episode, an active one where there is one."""
    rows = torch.arange(len(episode), device=episode.device)
    size = len(rows)
    rank = torch.where(active, rows, rows + size)
    best = torch.full((count,), 2 * size, dtype=torch.int64, device=episode.device)
    return best.scatter_reduce(0, episode, rank, "amin") % max(size, 1)


def _check_agreement(inputs: AdvantageInputs, episode: Tensor, active: Tensor, row: Tensor) -> None:
    for name in ("reward", "group_id"):
        value: Tensor = getattr(inputs, name)
        if not torch.equal(value[active], value[row][episode][active]):
            raise RecordError(f"rows of one trajectory differ in {name}; repeat it on each of them")


def _time_order(episode: Tensor, segment: Tensor) -> Tensor:
    """Rows by episode, then by segment."""
    by_segment = torch.argsort(segment, stable=True)
    return by_segment[torch.argsort(episode[by_segment], stable=True)]


def _turn_slots(turn_of: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Number the turns of each episode from 0: ``(slot[E, K], turn[E, S])``."""
    episodes, width = present.shape
    if width == 0:
        return turn_of, torch.full((episodes, 0), -1, dtype=torch.int64, device=present.device)
    changed = torch.zeros_like(present)
    changed[:, 1:] = turn_of[:, 1:] != turn_of[:, :-1]
    slot = torch.where(present, changed.cumsum(1), torch.zeros_like(turn_of))
    turn = torch.full((episodes, int(slot.max()) + 1), -1, dtype=torch.int64, device=present.device)
    owner = torch.arange(episodes, device=present.device)[:, None].expand_as(slot)
    turn[owner[present], slot[present]] = turn_of[present]
    return slot, turn


def _shifted(present: Tensor) -> Tensor:
    """[E, K] bool: an action follows."""
    return torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], 1)
