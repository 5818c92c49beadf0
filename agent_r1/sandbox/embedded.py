"""The embedded executor (first version)."""

from __future__ import annotations

import asyncio
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from agent_r1.errors import LanguageUnavailable, SandboxError
from agent_r1.sandbox import tiers
from agent_r1.sandbox.base import Limits, RunRequest, RunResult
from agent_r1.sandbox.exchange import Exchange, SlotLost
from agent_r1.sandbox.pool import Slot, ZygotePool

_GRACE = 5.0
_ATTEMPTS = 3


class Gate:
    """Lets a number of runs through at a time, first come first served, any kind of waiter."""

    def __init__(self, permits: int) -> None:
        self._lock = threading.Lock()
        self._free = permits
        self._waiting: deque[Callable[[], None]] = deque()

    def enter(self) -> None:
        """Wait for a permit, blocking."""
        opened = threading.Lock()
        opened.acquire()
        if not self._ask(opened.release):
            opened.acquire()

    async def aenter(self) -> None:
        """Wait for a permit, on the running event loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(self._hand_over, future)

        if not self._ask(wake):
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self.leave()
                raise

    def _hand_over(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self.leave()
        else:
            future.set_result(None)

    def _ask(self, wake: Callable[[], None]) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append(wake)
            return False

    def leave(self) -> None:
        """Give the permit to the longest waiting, or back."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            wake = self._waiting.popleft()
        wake()


class EmbeddedExecutor:
    """Runs programs in isolated processes that this process starts itself."""

    def __init__(self, workers: int | None = None, isolation: str = "strict") -> None:
        self.workers = workers or max(8, 2 * (os.cpu_count() or 1))
        self.isolation = isolation
        self._gate = Gate(self.workers)
        size = Limits().file_bytes
        self._pools = {tier.name: ZygotePool(tier, size) for tier in tiers.ALL}

    def run(self, request: RunRequest) -> RunResult:
        pool, job = self._plan(request)
        self._gate.enter()
        try:
            for attempt in range(_ATTEMPTS):
                slot = pool.take()
                try:
                    return self._run_on(slot, request, job)
                except SlotLost:
                    if attempt + 1 == _ATTEMPTS:
                        raise
            raise AssertionError
        finally:
            self._gate.leave()

    def _run_on(self, slot: Slot, request: RunRequest, job: dict[str, Any]) -> RunResult:
        try:
            exchange = Exchange(slot.channel, request, job)
        except SlotLost:
            slot.close()
            raise
        try:
            _pump(exchange, time.monotonic() + job["wall"] + _GRACE)
            result = exchange.result()
        except BaseException:
            exchange.close()
            slot.close()
            raise
        slot.tier.put(slot)
        return result

    async def arun(self, request: RunRequest) -> RunResult:
        pool, job = self._plan(request)
        await self._gate.aenter()
        try:
            for attempt in range(_ATTEMPTS):
                slot = pool.take_idle() or await asyncio.to_thread(pool.take)
                try:
                    return await self._arun_on(slot, request, job)
                except SlotLost:
                    if attempt + 1 == _ATTEMPTS:
                        raise
            raise AssertionError
        finally:
            self._gate.leave()

    async def _arun_on(self, slot: Slot, request: RunRequest, job: dict[str, Any]) -> RunResult:
        try:
            exchange = Exchange(slot.channel, request, job)
        except SlotLost:
            slot.close()
            raise
        try:
            await _apump(exchange, job["wall"] + _GRACE)
            result = exchange.result()
        except BaseException:
            exchange.close()
            slot.close()
            raise
        slot.tier.put(slot)
        return result

    def _plan(self, request: RunRequest) -> tuple[ZygotePool, dict[str, Any]]:
        limits = request.limits
        cpu = limits.cpu_seconds or limits.wall_seconds * (os.cpu_count() or 1)
        job: dict[str, Any] = {
            "code": request.code,
            "files": dict(request.files),
            "fetch": list(request.fetch_files),
            "seed": request.seed,
            "last_expression": request.last_expression,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
            "cpu_seconds": max(1, math.ceil(cpu)),
            "wall": limits.wall_seconds,
        }
        if request.language == "python":
            return self._pools[tiers.choose(request.code).name], job
        if request.language == "bash":
            job["command"] = ["/bin/bash", "-c", request.code]
            job["environment"] = {
                "PATH": "/usr/bin:/bin",
                "HOME": "/sandbox/work",
                "LANG": "C.UTF-8",
            }
            return self._pools["tools"], job
        raise LanguageUnavailable(f"language {request.language!r} is not available")

    def close_session(self, session: str) -> None:
        """Sessions are not there yet."""

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _pump(exchange: Exchange, deadline: float) -> None:
    poller = select.poll()
    for descriptor in (exchange.channel.fileno(), exchange.out.descriptor, exchange.err.descriptor):
        poller.register(descriptor, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        events = poller.poll(max(0.0, left * 1000))
        if not events:
            raise SlotLost("the sandbox did not end a program in time")
        for descriptor, _ in events:
            if exchange.readable(descriptor):
                return
            stream = exchange.out if descriptor == exchange.out.descriptor else exchange.err
            if descriptor == stream.descriptor and (stream.overflowed or _ & select.POLLHUP):
                poller.unregister(descriptor)


async def _apump(exchange: Exchange, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def ready(descriptor: int) -> None:
        try:
            if exchange.readable(descriptor):
                if not done.done():
                    done.set_result(None)
                return
        except SandboxError as error:
            if not done.done():
                done.set_exception(error)
        stream = exchange.out if descriptor == exchange.out.descriptor else exchange.err
        if descriptor == stream.descriptor and stream.overflowed:
            loop.remove_reader(descriptor)

    watched = [exchange.channel.fileno(), exchange.out.descriptor, exchange.err.descriptor]
    for descriptor in watched:
        loop.add_reader(descriptor, ready, descriptor)
    timer = loop.call_later(seconds, _late, done)
    try:
        await done
    finally:
        timer.cancel()
        for descriptor in watched:
            loop.remove_reader(descriptor)


def _late(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(SlotLost("the sandbox did not end a program in time"))
