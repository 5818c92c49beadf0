"""What token ids say, for showing single tokens.

A run's tokenizer is read with ``tokenizers`` alone where it has a ``tokenizer.json``, which
spares the reader the weight of transformers and torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import yaml

from agent_r1.errors import AgentR1Error
from agent_r1.rollout.engines.embedded_stop import token_bytes

_LONGEST_CHARACTER = 4


class Spelling:
    """The bytes of each token id of a vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self._bytes = token_bytes(tokenizer, max(tokenizer.get_vocab().values()) + 1)

    def knows(self, ids: Sequence[int]) -> bool:
        return min(ids, default=0) >= 0 and max(ids, default=0) < len(self._bytes)

    def text(self, ids: Iterable[int]) -> str:
        return b"".join(self._bytes[index] for index in ids).decode(errors="replace")

    def pieces(self, ids: Sequence[int]) -> list[tuple[str, int]]:
        """``(text, how many tokens)``: the tokens of one character make one piece."""
        made: list[tuple[str, int]] = []
        held, count = b"", 0
        for index in ids:
            held, count = held + self._bytes[index], count + 1
            if _is_whole(held):
                made.append((held.decode(errors="replace"), count))
                held, count = b"", 0
        return [*made, (held.decode(errors="replace"), count)] if count else made


class SpellingOf:
    """The spelling of a run, read in the background the first time that it is asked for."""

    def __init__(self, folder: Path, given: Path | None = None) -> None:
        self._folder, self._given = folder, given
        self._lock = Lock()
        self._thread: Thread | None = None
        self._found: Spelling | None = None

    def get(self, seconds: float = 5.0) -> Spelling | None:
        """The spelling; None while it is being read for longer, or where there is none."""
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._read, daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(seconds)
        return self._found

    def _read(self) -> None:
        model = self._given or model_of(self._folder)
        if model is not None:
            self._found = read_spelling(model)


def read_spelling(model: Path) -> Spelling | None:
    """The spelling of a model folder; None where there is no tokenizer that can be read."""
    file = model / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        return Spelling(_Light(Tokenizer.from_file(str(file))))
    from agent_r1.models.load import load_tokenizer

    try:
        return Spelling(load_tokenizer(model))
    except (AgentR1Error, OSError, ValueError):
        return None


def model_of(folder: Path) -> Path | None:
    """The newest checkpoint's policy, else the model in the settings, where it is on disk."""
    found = sorted(folder.glob("checkpoints/step-*/policy"), key=lambda p: (len(str(p)), p))
    if found:
        return found[-1]
    try:
        settings = yaml.load((folder / "config.yaml").read_text(), yaml.CSafeLoader)
        path = Path(settings["actor_rollout_ref"]["model"]["path"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    places = [path, *(parent / path for parent in folder.parents)]
    return next((place for place in places if place.is_dir()), None)


class _Light:
    """What :func:`token_bytes` asks of a tokenizer, without transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.backend_tokenizer = tokenizer

    def get_vocab(self) -> dict[str, int]:
        found: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return found


def _is_whole(text: bytes) -> bool:
    """Whether text ends with a character's end, or cannot become one any more."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data" or len(text) - error.start >= (
            _LONGEST_CHARACTER
        )
    return True
