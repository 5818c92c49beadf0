"""Batches drawn as text.

A row is a string with one character per token: a digit is a token that the model wrote in
the turn of that number, anything else (``.``) is prompt, tool output or padding.
"""

from collections.abc import Callable, Sequence

import pytest
import torch

from agent_r1.algorithms.episodes import AdvantageInputs


def draw(rows: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """``(loss_mask, turn_index)`` of rows drawn as text."""
    width = max(map(len, rows))
    cells = [[int(c) if c.isdigit() else -1 for c in row.ljust(width, ".")] for row in rows]
    turn = torch.tensor(cells)
    return turn >= 0, turn


def build(
    rows: Sequence[str],
    reward: Sequence[float],
    *,
    group: Sequence[int] | None = None,
    trajectory: Sequence[int] | None = None,
    segment: Sequence[int] | None = None,
    **optional: object,
) -> AdvantageInputs:
    """Inputs in float64; by default one group and every row a trajectory."""
    mask, turn = draw(rows)
    n = len(rows)

    def tensor(value: object) -> object:
        if value is None or isinstance(value, torch.Tensor):
            return value
        made = torch.tensor(value)
        return torch.tensor(value, dtype=torch.float64) if made.is_floating_point() else made

    return AdvantageInputs(
        loss_mask=mask,
        reward=torch.tensor(reward, dtype=torch.float64),
        group_id=torch.tensor(group or [0] * n),
        trajectory_id=torch.tensor(trajectory or list(range(n))),
        segment=torch.tensor(segment or [0] * n),
        turn_index=turn,
        **{name: tensor(value) for name, value in optional.items()},
    )


@pytest.fixture
def batch() -> Callable[..., AdvantageInputs]:
    return build


def check(actual: torch.Tensor, expected: object, atol: float = 1e-9) -> None:
    """Equal values; ``expected`` may be nested lists."""
    wanted = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, wanted, atol=atol, rtol=0)


@pytest.fixture
def same() -> Callable[..., None]:
    return check
