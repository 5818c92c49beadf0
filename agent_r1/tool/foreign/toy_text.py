"""Gymnasium's toy-text environments in words: what their numbers mean, and their actions' names.

The meanings are those that Gymnasium documents for each environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ACTIONS: dict[str, tuple[str, ...]] = {
    "FrozenLake": ("left", "down", "right", "up"),
    "FrozenLake8x8": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "CliffWalkingSlippery": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pickup", "dropoff"),
    "Blackjack": ("stick", "hit"),
}

_STANDS = ("R", "G", "Y", "B")
_CLIFF = (4, 12)


def frozen_lake(observation: Any, env: Any) -> str:
    """The map, the player as ``P``: S start, F ice, H hole, G goal."""
    rows = [[cell.decode() for cell in row] for row in env.unwrapped.desc]
    row, column = divmod(int(observation), len(rows[0]))
    rows[row][column] = "P"
    return "\n".join("".join(line) for line in rows)


def cliff_walking(observation: Any, env: Any) -> str:
    """The map, the player as ``P``: C cliff, T target."""
    height, width = _CLIFF
    rows = [["."] * width for _ in range(height)]
    rows[-1][1:-1] = ["C"] * (width - 2)
    rows[-1][-1] = "T"
    row, column = divmod(int(observation), width)
    rows[row][column] = "P"
    return "\n".join("".join(line) for line in rows)


def taxi(observation: Any, env: Any) -> str:
    """The map, on which ``:`` can be crossed and ``|`` cannot, and where everybody is."""
    row, column, passenger, destination = env.unwrapped.decode(int(observation))
    rows = [[cell.decode() for cell in line] for line in env.unwrapped.desc]
    rows[1 + row][1 + 2 * column] = "X"
    picture = "\n".join("".join(line) for line in rows)
    stand = _STANDS[passenger] if passenger < len(_STANDS) else "in the taxi"
    return f"{picture}\nTaxi: X. Passenger: {stand}. Destination: {_STANDS[destination]}."


def blackjack(observation: Any, env: Any) -> str:
    """The player's sum, the dealer's card, and whether an ace counts 11."""
    total, dealer, ace = (int(part) for part in observation)
    return f"Your sum: {total}. Dealer shows: {dealer}. Usable ace: {'yes' if ace else 'no'}."


OBSERVATIONS: dict[str, Callable[[Any, Any], str]] = {
    "FrozenLake": frozen_lake,
    "FrozenLake8x8": frozen_lake,
    "CliffWalking": cliff_walking,
    "CliffWalkingSlippery": cliff_walking,
    "Taxi": taxi,
    "Blackjack": blackjack,
}
