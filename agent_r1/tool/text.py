"""Making tool output safe and short enough to be read by a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_CHAT_MARKUP = re.compile(
    r"<\|[^<>|\s]{1,64}\|>"  # <|im_end|>, <|eot_id|>, <|endoftext|>
    r"|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]",
    re.IGNORECASE,
)


def neutralise(text: str, tags: Iterable[str] = ()) -> str:
    """Break everything in untrusted text that would act as markup in a model's context.

    Control tokens of the usual chat formats and the given ``tags`` (``"</interpreter>"``)
    get a space after their first character. They stay readable, but neither a tokenizer
    nor an environment takes them for the real thing, so a tool's output cannot end its
    own block and speak with another voice.
    """
    text = _CHAT_MARKUP.sub(_broken, text)
    names = "|".join(re.escape(tag) for tag in tags)
    return re.sub(names, _broken, text, flags=re.IGNORECASE) if names else text


def _broken(match: re.Match[str]) -> str:
    return match[0][0] + " " + match[0][1:]


def presentable(text: str, limit: int, tags: Iterable[str] = ()) -> str:
    """Untrusted text as a model may read it: at most ``limit`` characters, all harmless.

    Cut first, so that a megabyte of output costs no more than what is shown of it; and
    again in the rare case that the added spaces made it too long.
    """
    clean = neutralise(truncate(text, limit), tags)
    return clean if len(clean) <= limit else truncate(clean, limit)


def between(text: str, opening: str, closing: str) -> list[str]:
    """What stands between each ``opening`` and the next ``closing``, in order.

    Linear in the text, unlike the regular expression that one would write for it, which a
    model can make quadratic by opening a thousand times and never closing.
    """
    found: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        start += len(opening)
        end = text.find(closing, start)
        if end < 0:
            break
        found.append(text[start:end])
        position = end + len(closing)
    return found


def truncate(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text``, the cut visible and no character halved.

    The middle goes: a program's output begins with what it was asked for and ends with
    the error that it died of. The mark says how much is missing. Cuts fall between
    characters as people see them, never between a letter and its accents or inside an
    emoji sequence. (The token budget is another matter and not decided here.)
    """
    if len(text) <= limit:
        return text
    room = limit - len(_cut_mark(len(text)))
    if room < 16:
        return text[: _boundary_before(text, max(limit - 3, 0))] + "..."[:limit]
    head = _boundary_before(text, room - room // 3)
    tail = _boundary_after(text, len(text) - room // 3)
    return text[:head] + _cut_mark(tail - head) + text[tail:]


def _cut_mark(characters: int) -> str:
    return f"\n... [{characters} characters cut] ...\n"


def _joins(text: str, i: int) -> bool:
    """Whether ``text[i]`` belongs to the same visible character as ``text[i - 1]``."""
    here, before = text[i], text[i - 1]
    if here == "\n" and before == "\r":
        return True
    if "\U0001f1e6" <= here <= "\U0001f1ff" and "\U0001f1e6" <= before <= "\U0001f1ff":
        return True  # flags: pairs of regional indicators; runs of them are kept whole
    return (
        unicodedata.category(here) in ("Mn", "Me", "Mc")
        or here == "\u200d"
        or before == "\u200d"
        or "\U0001f3fb" <= here <= "\U0001f3ff"  # skin tones
    )


_LONGEST_CHARACTER = 64
"""Longer runs of joined code points are no character but an attack; they are cut."""


def _boundary_before(text: str, i: int) -> int:
    for at in range(i, max(i - _LONGEST_CHARACTER, 0), -1):
        if not _joins(text, at):
            return at
    return i


def _boundary_after(text: str, i: int) -> int:
    for at in range(i, min(i + _LONGEST_CHARACTER, len(text))):
        if not _joins(text, at):
            return at
    return i
