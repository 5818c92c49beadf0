"""The process that grading happens in; started by :mod:`agent_r1.reward.grader`.

It reads pickled frames from stdin and answers on what was stdout. The function's own
prints go to stderr. It ends when its parent does, because stdin ends then.
"""

from __future__ import annotations

import functools
import os
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from agent_r1.reward.base import make_reward, normalise_reward, traits_of, with_options
from agent_r1.reward.limits import TimeLimit, time_limit
from agent_r1.types import Reward, Trajectory

_HEADER = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a grading process is for. ``fn`` is a name, a path, or a function by reference."""

    fn: str | Callable[..., Any]
    name: str
    options: Mapping[str, Any]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What a reward function is called with: a trajectory, and its siblings if it wants them."""

    trajectory: Trajectory
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one trajectory: a reward, or what went wrong."""

    reward: Reward | None = None
    error: str = ""
    timed_out: bool = False


def write_frame(pipe: BinaryIO, item: object) -> None:
    body = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
    pipe.write(_HEADER.pack(len(body)) + body)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> Any:
    """The next frame. Raises ``EOFError`` when the other side is gone."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    (length,) = _HEADER.unpack(header)
    body = pipe.read(length)
    if len(body) < length:
        raise EOFError
    return pickle.loads(body)


def grade(fn: Callable[..., Any], name: str, view: View, timeout_s: float) -> Verdict:
    """Grade one trajectory; everything that can go wrong becomes a verdict."""
    try:
        with time_limit(timeout_s):
            return Verdict(normalise_reward(fn(view.trajectory, **view.context), name))
    except TimeLimit:
        return Verdict(timed_out=True)
    except Exception as error:
        return Verdict(error=describe(error))


def describe(error: BaseException) -> str:
    """Type, message and the innermost place."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"


def main() -> None:
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:] = read_frame(requests)
    try:
        job: Assignment = read_frame(requests)
        fn: Callable[..., Any] = (
            make_reward(job.fn, **job.options)
            if isinstance(job.fn, str)
            else with_options(job.fn, job.name, job.options)
        )
        prepare = traits_of(fn).prepare
        if prepare is not None:
            prepare()
        grade_one = functools.partial(grade, fn, job.name, timeout_s=job.timeout_s)
    except Exception as error:
        write_frame(answers, Verdict(error=describe(error)))
        return
    write_frame(answers, Verdict())
    while True:
        try:
            view: View = read_frame(requests)
        except EOFError:
            return
        write_frame(answers, grade_one(view))


if __name__ == "__main__":
    main()
