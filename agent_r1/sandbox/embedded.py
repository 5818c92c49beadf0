"""The embedded executor: isolated programs, started by this process.

With ``isolation="strict"``, the default, a program

- sees a read-only root of the interpreter, its installed packages, ``/usr/bin`` and the system
  libraries, a made-up ``/etc``, and an empty working directory that is gone afterwards;
- has user, mount, process, network, IPC, host name and control group namespaces of its own:
  no other process exists for it, no network but a loopback of its own;
- has no capabilities and cannot gain any, and a system call filter (see :mod:`.guest.seccomp`);
- inherits no memory, environment variable or file descriptor of this process: it is forked
  from a clean interpreter that was executed inside the namespaces;
- is held to limits of wall clock, CPU, memory, processes, files and output, and every process
  that it leaves is ended before the next program runs;
- never holds a channel to this process: its output is read from pipes, how it ended is
  reported by the process that waited for it.

All of it works as root and as an ordinary user. Where the kernel denies a primitive the
first run (or :meth:`EmbeddedExecutor.start`) raises and names the guarantee; the levels
``"landlock"`` and ``"process"`` do without (see :data:`.isolation.MISSING`).

Not protected, at any level:

- against bugs of the kernel: programs share it, and a hole in it is a way out;
- against reading what is installed: packages, ``/usr`` and ``/etc/ld.so.cache`` are visible,
  and so are their paths, the kernel's version and the machine's processors;
- against timing and cache side channels between programs and with the host;
- the machine's time: a program may use every core until its limit;
- the memory of a whole tree, precisely, where no control group can be made (an ordinary user,
  mostly): each process has its limit, and the sum is sampled every 50 ms;
- a program against itself: it chooses its exit code and may print anything. In a session,
  one cell may change what later cells of the same session do;
- randomness from the kernel (``os.urandom``, ``default_rng()``, ``uuid4``) under a seed.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Final

from agent_r1.errors import SandboxUnavailable
from agent_r1.sandbox import cgroups, freezer, tiers
from agent_r1.sandbox.base import Limits, RunRequest, RunResult, RunStatus
from agent_r1.sandbox.exchange import Exchange, SlotLost
from agent_r1.sandbox.guest import messages
from agent_r1.sandbox.isolation import LEVELS, MISSING, Level
from agent_r1.sandbox.jobs import Job, Plan, plan
from agent_r1.sandbox.pool import PoolSettings, Slot, ZygotePool
from agent_r1.sandbox.sessions import Session, SessionTable
from agent_r1.sandbox.steps import Call, Flow, Gate, Step, adrive, drive

_ATTEMPTS: Final = 3
_NOT_RUN: Final = RunResult(status=RunStatus.ERROR)
_LOST: Final = "\n[the session ended; its state is lost]\n"


class EmbeddedExecutor:
    """Runs programs in isolated processes; see this module's text for what that means.

    Construction is cheap: the processes start with the first program that needs them.

    Args:
        workers: programs that run at the same time; others wait. By default twice the cores,
            at least 8, so that sleeping and looping programs do not hold up short ones.
        isolation: ``"strict"``, or the name of a weaker level that is accepted.
        max_sessions: persistent interpreters kept; one more ends the longest unused one
            that is not running.
    """

    def __init__(
        self,
        workers: int | None = None,
        isolation: Level = "strict",
        *,
        max_sessions: int = 256,
    ) -> None:
        if isolation not in LEVELS:
            raise ValueError(f"isolation={isolation!r}: choose one of {', '.join(LEVELS)}")
        self.workers = workers or max(8, 2 * (os.cpu_count() or 1))
        self.isolation: Level = isolation
        self._gate = Gate(self.workers)
        self._max_sessions = max_sessions
        self._lock = threading.Lock()
        self._owner = -1
        self._pools: dict[str, ZygotePool] = {}
        self._sessions = SessionTable(max_sessions)
        self._closed = False

    def start(self) -> None:
        """Start the processes for plain Python now instead of with the first program.

        Raises:
            SandboxUnavailable: the kernel denies a guarantee; the message names it, and the
                weaker levels that do without.
        """
        pool = self._pool(tiers.PLAIN)
        pool.put(pool.take())

    @property
    def missing_guarantees(self) -> tuple[str, ...]:
        """What this executor's level does not guarantee; empty for ``"strict"``."""
        return MISSING[self.isolation]

    def run(self, request: RunRequest) -> RunResult:
        return drive(self._flow(request))

    async def arun(self, request: RunRequest) -> RunResult:
        return await adrive(self._flow(request))

    def close_session(self, session: str) -> None:
        self._sessions.close(session)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pools, self._pools = list(self._pools.values()), {}
        self._sessions.close_all()
        if self._owner == os.getpid():
            for pool in pools:
                pool.close()

    def __enter__(self) -> EmbeddedExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pool(self, tier: tiers.Tier) -> ZygotePool:
        with self._lock:
            if self._closed:
                raise SandboxUnavailable("the executor is closed")
            if self._owner != os.getpid():  # first use, or first use in a forked child
                self._start()
            return self._pools[tier.name]

    def _start(self) -> None:
        self._owner = os.getpid()
        self._gate = Gate(self.workers)
        self._sessions = SessionTable(self._max_sessions)
        groups = (cgroups.find(), freezer.find())
        settings = PoolSettings(Limits().file_bytes, self.isolation, *groups)
        self._pools = {tier.name: ZygotePool(tier, settings) for tier in tiers.ALL}

    def _flow(self, request: RunRequest) -> Flow[RunResult]:
        planned = plan(request)
        pool = self._pool(planned.tier)
        gate = self._gate
        yield gate
        try:
            if request.session is not None:
                return (yield from self._in_session(request.session, pool, request, planned))
            return (yield from _run_once(pool, request, planned))
        finally:
            gate.leave()

    def _in_session(
        self, name: str, pool: ZygotePool, request: RunRequest, planned: Plan
    ) -> Flow[RunResult]:
        """Run in the interpreter called ``name``, one cell at a time."""
        session = self._sessions.get(name)
        yield session.turn
        try:
            losses: list[SlotLost] = []
            while True:
                fresh = session.slot is None
                if session.slot is None:
                    session.slot = yield Call(pool.take_for_session, Slot.close)
                try:
                    return (yield from _cell(session, request, planned.run))
                except SlotLost as error:
                    losses.append(error)
                if not fresh:
                    return _lost_session(name, losses[-1])
                if len(losses) == _ATTEMPTS:
                    return _blame(losses)
                pool.prune()
        finally:
            if session.closed:
                session.drop()
            session.turn.leave()


def _run_once(pool: ZygotePool, request: RunRequest, planned: Plan) -> Flow[RunResult]:
    """Run on a slot; when that is lost, on another one."""
    losses: list[SlotLost] = []
    while True:
        slot = yield from _take(pool)
        try:
            return (yield from _on_slot(slot, request, planned))
        except SlotLost as error:
            losses.append(error)
        if len(losses) == _ATTEMPTS:
            return _blame(losses)
        pool.prune()


class _Starved(SlotLost):
    """The slot was lost, and the kernel had killed in it for memory."""

    def __init__(self, result: RunResult) -> None:
        super().__init__("the sandbox process ended while the kernel killed for memory")
        self.result = result


_HOLDS_MORE: Final = RunResult(
    status=RunStatus.MEMORY_LIMIT,
    stderr="The interpreter held more memory than the limit of this run.\n",
    exit_code=-signal.SIGKILL,
)


def _blame(losses: list[SlotLost]) -> RunResult:
    """Who lost the slots? Somebody outside, or a program that used up their memory every time.

    The kernel takes a program's processes first, unless it does what it can to have ours taken.
    """
    last = losses[-1]
    if isinstance(last, _Starved) and all(isinstance(loss, _Starved) for loss in losses):
        return last.result
    raise last


def _lost_session(name: str, loss: SlotLost) -> RunResult:
    if isinstance(loss, _Starved):
        return _note_loss(loss.result)
    raise SlotLost(f"session {name!r} is lost, and its state with it: {loss}") from loss


def _take(pool: ZygotePool) -> Generator[Step, Any, Slot]:
    """A slot of ``pool``; starting one blocks for milliseconds, a tier for up to seconds."""
    slot: Slot = pool.take_idle() or (yield Call(pool.take, pool.put))
    return slot


def _on_slot(slot: Slot, request: RunRequest, planned: Plan) -> Flow[RunResult]:
    """Compile if need be and run; the slot goes back to its tier, or ends if it is unclean."""
    clean = False
    try:
        compiled: RunResult | None = None
        if planned.compile is not None:
            try:
                first = yield from _exchange(slot, request, planned.compile, messages.KEEP_FILES)
            except _Starved as error:
                raise _Starved(replace(_NOT_RUN, compile=error.result)) from error
            compiled = first.result
            if compiled.status is not RunStatus.SUCCESS:
                return replace(_NOT_RUN, compile=compiled)
        ended = yield from _exchange(slot, request, planned.run, 0)
        clean = True
        return ended.result if compiled is None else replace(ended.result, compile=compiled)
    finally:
        if clean:
            slot.tier.put(slot)
        else:
            slot.close()


def _cell(session: Session, request: RunRequest, job: Job) -> Flow[RunResult]:
    """One run in a session's interpreter, whose slot ends when the interpreter does."""
    slot = session.slot
    assert slot is not None
    goes_on = False
    try:
        ended = yield from _exchange(slot, request, job, messages.SESSION)
        goes_on = ended.session_lives
        return ended.result if goes_on else _note_loss(ended.result)
    finally:
        if not goes_on:
            session.drop()


@dataclass(frozen=True, slots=True)
class _Ended:
    result: RunResult
    session_lives: bool


def _exchange(slot: Slot, request: RunRequest, job: Job, flags: int) -> Flow[_Ended]:
    """One run on ``slot``."""
    # What is fetched is copied within the slot's control group.
    copies = request.limits.file_bytes if job.payload["fetch"] else 0
    try:
        slot.limit(request.limits.memory_bytes + copies, request.limits.processes)
    except OSError as error:
        if error.errno == errno.EBUSY:  # a session holds more than this run may have
            raise _Starved(_HOLDS_MORE) from error
        # The slot's tier was killed, and its group is already cleared away.
        raise SlotLost(f"the slot's control group is gone: {error}") from error
    slot.ran_out()  # kills of earlier runs are no matter of this one
    exchange = Exchange(slot.channel, request, job, flags)
    try:
        yield exchange
        report = exchange.report
        assert report is not None
        killed = report.wait_status & 0x7F == signal.SIGKILL
        ran_out = killed and slot.ran_out()
        if killed and not ran_out and report.reason == messages.EXITED:
            yield from _confirm(slot)
        return _Ended(exchange.result(ran_out=ran_out), report.alive)
    except SlotLost as error:
        if not slot.ran_out():
            raise
        raise _Starved(exchange.cut_short()) from error
    finally:
        exchange.close()


def _confirm(slot: Slot) -> Generator[Step, Any, None]:
    """A killed program may have been its own doing, or have died with its whole tier."""
    sound = yield Call(slot.is_sound, lambda _: None)
    if not sound:
        raise SlotLost("the sandbox process ended together with its program")


def _note_loss(result: RunResult) -> RunResult:
    """Tell who reads the output that the next run begins with nothing."""
    return replace(result, stderr=result.stderr + _LOST)
