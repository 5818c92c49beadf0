"""Score trajectories without letting a grader stop the run.

A reward function may hang (a parser that explodes on what a model wrote), crash the
interpreter, print, leak. So it runs in a small number of warm processes that are killed
and replaced when they do not answer. Signals would not do: they work in main threads only,
and not within one long operation in C.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import os
import pickle
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import IO, Any, ClassVar, Literal, Self

from agent_r1.errors import RewardError
from agent_r1.reward.base import (
    SIBLINGS,
    grading_view,
    make_reward,
    normalise_reward,
    traits_of,
    wants_siblings,
    with_options,
)
from agent_r1.reward.worker import Assignment, Verdict, View, describe, read_frame, write_frame
from agent_r1.tool.threads import to_daemon_thread
from agent_r1.types import Reward, Trajectory

Isolation = Literal["inline", "async", "process", "thread"]

_GRACE_S = 1.0
"""A process that has not noticed its own time limit after this long is killed."""
_START_S = 120.0
"""Importing a user's reward module may load a lot."""


class Grader:
    """Scores trajectories with one reward function, each within ``timeout_s`` seconds.

    Args:
        reward: a registered name, a path, or the function itself.
        timeout_s: seconds for one trajectory, waiting for a free process not counted.
        workers: processes to keep; they start when first needed. ``None``: a quarter of the
            processors, at least 2 and at most 8. (A wrong LaTeX answer takes math-verify some
            50 ms, everything else well below 1 ms.)
        options: keyword arguments of the function.

    How a function is run (:attr:`isolation`) follows from what it is: ``async def`` is
    awaited in the event loop; one registered as ``inline`` is simply called; one that can
    be named (by name, path, or importable) runs in a process; a closure or a lambda runs
    in a thread, which can be abandoned but not killed.

    A trajectory that cannot be scored raises :class:`agent_r1.errors.RewardError`. It is
    never scored 0 instead: 0 is a judgement.
    """

    def __init__(
        self,
        reward: str | Callable[..., Any],
        *,
        timeout_s: float = 30.0,
        workers: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self.name = reward if isinstance(reward, str) else _name_of(reward)
        self._fn = (
            make_reward(reward, **(options or {}))
            if isinstance(reward, str)
            else with_options(reward, self.name, options or {})
        )
        self._traits = traits_of(self._fn)
        self.wants_siblings = wants_siblings(self._fn)
        """Whether the function compares a trajectory with the others of its group."""
        self.isolation: Isolation = _isolation(reward, self._fn, self._traits.inline)
        workers = workers or min(8, max(2, (os.cpu_count() or 1) // 4))
        self._pool = _Pool(Assignment(reward, self.name, options or {}, timeout_s), workers)
        self._threads = ThreadPoolExecutor(workers, "agent-r1-grader")

    def score(self, trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Reward:
        """Score one trajectory. Blocks; safe from many threads.

        ``siblings`` are the members of its group that are scored with it, itself among them;
        without any it is scored alone. They matter where :attr:`wants_siblings`.

        Raises:
            RewardError: the function raised, returned no finite number, or took too long.
        """
        if self.isolation in ("async", "thread"):
            return asyncio.run(self.ascore(trajectory, siblings))
        view = self._view(trajectory, siblings)
        if self.isolation == "inline":
            return self._call(view)
        return self._reward_of(self._pool.grade(view))

    async def ascore(self, trajectory: Trajectory, siblings: Sequence[Trajectory] = ()) -> Reward:
        """Score one trajectory without blocking the event loop; raises as :meth:`score`."""
        if self.isolation == "process":
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self.score, trajectory, siblings)
        if self.isolation == "inline":
            return self.score(trajectory, siblings)
        view = self._view(trajectory, siblings)
        try:
            async with asyncio.timeout(self.timeout_s):
                if self.isolation == "thread":
                    return await to_daemon_thread(self._call, view)
                return normalise_reward(await self._fn(view.trajectory, **view.context), self.name)
        except TimeoutError:
            return self._reward_of(Verdict(timed_out=True))
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"the reward {self.name!r} failed: {describe(error)}") from error

    async def graded(
        self, trajectory: Trajectory, siblings: Sequence[Trajectory] = ()
    ) -> Trajectory:
        """The trajectory with its reward, or with ``error`` set if it could not be scored."""
        try:
            return replace(trajectory, reward=await self.ascore(trajectory, siblings))
        except RewardError as error:
            return replace(trajectory, reward=None, error=str(error))

    def close(self) -> None:
        """End the processes. Idempotent; a later :meth:`score` is an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view(self, trajectory: Trajectory, siblings: Sequence[Trajectory]) -> View:
        view = grading_view(trajectory)
        if not self.wants_siblings:
            return View(view)
        return View(view, {SIBLINGS: tuple(grading_view(t) for t in siblings) or (view,)})

    def _call(self, view: View) -> Reward:
        try:
            return normalise_reward(self._fn(view.trajectory, **view.context), self.name)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"the reward {self.name!r} failed: {describe(error)}") from error

    def _reward_of(self, verdict: Verdict) -> Reward:
        if verdict.reward is not None:
            return verdict.reward
        if verdict.timed_out and self._traits.on_timeout is not None:
            return self._traits.on_timeout()
        if verdict.timed_out:
            raise RewardError(
                f"the reward {self.name!r} took longer than {self.timeout_s:g} s "
                "(reward.timeout_s) for one trajectory"
            )
        raise RewardError(f"the reward {self.name!r} failed: {verdict.error}")


def score(
    trajectory: Trajectory, reward: str | Callable[..., Any], timeout_s: float = 30.0
) -> Reward:
    """Score a single trajectory. For many, make one :class:`Grader` and keep it."""
    with Grader(reward, timeout_s=timeout_s, workers=1) as grader:
        return grader.score(trajectory)


def _isolation(reward: object, fn: Callable[..., Any], inline: bool) -> Isolation:
    inner = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004  # an object with an async __call__
    ):
        return "async"
    if inline:
        return "inline"
    return "process" if isinstance(reward, str) or _importable(reward) else "thread"


def _importable(fn: object) -> bool:
    """Whether another process can find the very same function by its name."""
    module = sys.modules.get(getattr(fn, "__module__", "") or "")
    if module is None or module.__name__ == "__main__" or module.__spec__ is None:
        return False
    if module.__name__.startswith("_agent_r1_file_"):
        return False
    try:
        return pickle.loads(pickle.dumps(fn)) is fn
    except Exception:
        return False


def _name_of(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__qualname__", type(fn).__qualname__))


class _Pool:
    """At most ``size`` processes; one trajectory in each at a time."""

    def __init__(self, job: Assignment, size: int) -> None:
        self._job = job
        self._free = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False

    def grade(self, view: View) -> Verdict:
        with self._free:
            process = self._take()
            try:
                verdict = process.ask(view, self._job.timeout_s + _GRACE_S)
            except BaseException:
                process.kill()
                raise
            self._give_back(process)
            return verdict

    def close(self) -> None:
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for process in idle:
            process.kill()

    def _take(self) -> _Process:
        with self._lock:
            if self._closed:
                raise RewardError("this grader is closed")
            if self._idle:
                return self._idle.pop()
        return _Process(self._job)

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if process.alive and not self._closed:
                self._idle.append(process)
                return
        process.kill()


class _Process:
    """One grading process, from this side."""

    _all: ClassVar[weakref.WeakSet[_Process]] = weakref.WeakSet()

    def __init__(self, job: Assignment) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from agent_r1.reward.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt from the keyboard is the parent's business
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._all.add(self)
        self._send(sys.path)
        self._send(job)
        started = self._receive(_START_S)
        if started.error or started.timed_out:
            self.kill()
            raise RewardError(
                f"the reward {job.name!r} could not be loaded in its own process: "
                f"{started.error or f'no answer within {_START_S:g} s'}"
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, view: View, seconds: float) -> Verdict:
        """Grade one; a process that does not answer in time, or dies, is gone afterwards."""
        try:
            self._send(view)
        except (OSError, pickle.PicklingError, TypeError, AttributeError) as error:
            self.kill()
            return Verdict(error=f"the trajectory could not be sent: {describe(error)}")
        return self._receive(seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close_quietly(pipe)

    def _send(self, item: object) -> None:
        assert self._process.stdin is not None
        write_frame(self._process.stdin, item)  # type: ignore[arg-type]  # IO is BinaryIO here

    def _receive(self, seconds: float) -> Verdict:
        """The next verdict. Frames are small: once one begins, it is there."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN | select.POLLHUP)
        if not poller.poll(max(deadline - time.monotonic(), 0) * 1000):
            self.kill()
            return Verdict(timed_out=True)
        try:
            verdict: Verdict = read_frame(self._process.stdout)  # type: ignore[arg-type]
            return verdict
        except (EOFError, pickle.UnpicklingError):
            self.kill()
            return Verdict(error=f"its process died (exit code {self._process.returncode})")


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # what was buffered cannot be written any more, and need not be
        return


@atexit.register
def _end_processes() -> None:
    for process in list(_Process._all):
        process.kill()
