"""TextArena games (``pip install 'agent-r1[textarena]'``) as the environment of a run."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from agent_r1.errors import ConfigError
from agent_r1.registry import import_path
from agent_r1.tool.foreign.common import (
    ACTION_PATTERN,
    compiled,
    plain,
    quoted_action,
    require_package,
    said,
    task_options,
    task_seed,
)
from agent_r1.tool.protocol import Environment, Start, Step
from agent_r1.types import Task

Opponent = Callable[[str, int, random.Random], str]
_MOVE = re.compile(r"\[[^\[\]\n]{1,40}\]")
_GAME = -1
_draws = Lock()
"""Games draw from the random module's one generator, so only one of them moves at a time."""


def random_move(seen: str, seat: int, chance: random.Random) -> str:
    """Any of the moves in brackets that the last of the game's words offer; a weak opponent."""
    found = _MOVE.findall(seen.rstrip().rpartition("\n\n")[2]) or _MOVE.findall(seen)
    return chance.choice(found) if found else ""


class TextArenaEnv(Environment):
    """One game. The model has one seat; an ``opponent`` has the others.

    The game is used without its wrappers: the model sees each message once, when it comes. A
    task sets the game up: its ``seed`` (else its id) is that of the game and of the opponent's
    draws, so that siblings begin alike, and its ``options`` go over the configured ones. The
    reward is what the game gives the model's seat at the end (``reward.name=environment``).

    Args:
        id: as ``textarena.make`` takes it: ``Wordle-v0``, ``TicTacToe-v0``.
        players: how many seats the game has.
        seat: the model's. None: drawn from the task's seed.
        opponent: ``file.py:function``, given what that seat has seen, its number and a
            ``random.Random``; it returns a move. ``random``: a move that the game offers.
        options: further arguments of ``textarena.make``.
        action_pattern: regular expression whose group is the move within a turn; a turn without
            a match is the move as a whole. Brackets are added where it has none.
        max_moves: of all seats together, after which the game is cut short.
    """

    def __init__(
        self,
        id: str,
        shared: None = None,
        players: int = 1,
        seat: int | None = None,
        opponent: str = "random",
        options: Mapping[str, Any] | None = None,
        action_pattern: str = ACTION_PATTERN,
        max_moves: int = 200,
    ) -> None:
        self._id, self._players, self._options = id, players, dict(options or {})
        self._wanted = seat
        self._opponent: Opponent = random_move if opponent == "random" else import_path(opponent)
        self._pattern = compiled(action_pattern)
        self._max_moves, self._moves = max_moves, 0
        self._game: Any = None
        self._task: Task | None = None
        self._seat = 0
        self._seen: dict[int, str] = {}
        self._random: Any = None
        self._chance = random.Random(0)
        self._reward: float | None = None
        self._info: Any = None

    @classmethod
    def open_shared(cls, **options: Any) -> None:
        """Set a game up once, so that what cannot work is found before the run."""
        require_package("textarena", "textarena")
        game = cls(**{name: value for name, value in options.items() if name != "shared"})
        seats = range(game._players)
        if game._wanted is not None and game._wanted not in seats:
            raise ConfigError(f"tool.env_kwargs.seat={game._wanted} must be one of {list(seats)}")
        try:
            game.reset(Task("check", "", extra={"seed": 0}))
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigError(
                f"{game._id} cannot be played by {game._players}: {error}; "
                "see tool.env_kwargs.players"
            ) from error

    def reset(self, task: Task) -> Start:
        self._task = task
        seed = task_seed(task)
        self._chance = random.Random(seed)
        drawn = self._chance.randrange(self._players)
        self._seat = drawn if self._wanted is None else self._wanted
        self._game = _made(self._id, task_options(task, self._options))
        with self._drawing():
            self._game.reset(num_players=self._players, seed=seed)
        shown = self._until_its_turn()
        return Start(shown if not isinstance(task.prompt, str) else f"\n{shown}\n")

    def step(self, action: str) -> Step:
        assert self._task is not None
        refused = self._move(quoted_action(action, self._pattern))
        shown = self._until_its_turn()
        over = self._reward is not None
        return Step(
            said(self._task, shown),
            reward=self._reward,
            terminated=over,
            truncated=not over and self._moves >= self._max_moves,
            success=(not refused,),
        )

    @property
    def state(self) -> Any:
        """The model's seat, its reward, the moves of all seats, what the game says of each."""
        return {
            "seat": self._seat,
            "reward": self._reward,
            "moves": self._moves,
            "game": self._info,
        }

    def _move(self, text: str) -> bool:
        """One move of the seat whose turn it is; whether the game refused it."""
        if "[" not in text and "]" not in text:
            text = f"[{text}]"
        self._moves += 1
        errors = getattr(self._game.state, "error_count", 0)
        with self._drawing():
            over, _ = self._game.step(text)
            refused = getattr(self._game.state, "error_count", 0) > errors
            if over:
                rewards, info = self._game.close()
                self._reward = float((rewards or {}).get(self._seat, 0.0))
                self._info = plain(info)
        return refused or bool((self._info or {}).get(str(self._seat), {}).get("invalid_move"))

    def _until_its_turn(self) -> str:
        """Let the others move; what the model's seat has not seen yet."""
        shown = ""
        while True:
            with self._drawing():
                seat, messages = self._game.get_observation()
                if self._reward is not None:  # over: the last words to the model's seat
                    if seat != self._seat:
                        messages = self._game.state.observations.get(self._seat, [])
                    seat = self._seat
            words = "\n".join(_spoken(message, seat) for message in messages if message[0] != seat)
            if seat == self._seat:
                shown += words
            if seat == self._seat or self._moves >= self._max_moves:
                return shown.strip("\n")
            self._seen[seat] = f"{self._seen.get(seat, '')}{words}\n"
            self._move(self._opponent(self._seen[seat], seat, self._chance))

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """The random module as this game left it, and afterwards as everybody else did."""
        with _draws:
            outer = random.getstate()
            if self._random is not None:
                random.setstate(self._random)
            try:
                yield
            finally:
                self._random = random.getstate()
                random.setstate(outer)


def _spoken(message: Any, seat: int) -> str:
    speaker, text, _ = message
    return str(text) if speaker == _GAME else f"[Player {speaker}] {text}"


def _made(id: str, options: Mapping[str, Any]) -> Any:
    import textarena

    try:
        game = textarena.make(id, **options)
    except (ValueError, TypeError, ImportError, LookupError) as error:
        raise ConfigError(
            f"textarena.make({id!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())}) "
            f"failed: {error}; see tool.env_kwargs.id and options"
        ) from error
    while isinstance(game, textarena.Wrapper):
        game = game.env
    return game
