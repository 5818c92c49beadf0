"""vLLM servers as an engine: started and supervised here, or running somewhere already.

Every replica serves the same version. A replica that is lost takes no requests until it is
back and up to date; what it was sampling is sampled again by another, or by itself. A
trajectory stays with the replica that holds its prefix; new ones go where the load is least.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from agent_r1.errors import EngineError
from agent_r1.rollout.engine import WeightSource
from agent_r1.rollout.engines.vllm_process import VLLMProcess
from agent_r1.rollout.engines.vllm_server import (
    INITIAL_VERSION,
    UNKNOWN_VERSION,
    ServerFailed,
    Unreachable,
    VLLMServer,
    Wedged,
)
from agent_r1.rollout.engines.vllm_weights import FileSender, Parcel
from agent_r1.types import Completion, SamplingParams

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 5
"""Times that one completion is asked for before its trajectory fails."""


class Replica:
    """One server, and the process behind it if it is ours."""

    def __init__(self, process: VLLMProcess | None, url: str, timeout_s: float) -> None:
        self.process = process
        self.timeout_s = timeout_s
        self.server: VLLMServer | None = None if process else VLLMServer(url, timeout_s=timeout_s)
        self.ready = False
        self.version = INITIAL_VERSION
        self.prepared = False
        self.load = 0
        self.starts = 0

    @property
    def name(self) -> str:
        return self.server.url if self.server is not None else "a server not yet started"

    async def start(self, timeout_s: float) -> None:
        """Our process anew, or a look whether a foreign server is there."""
        if self.process is not None:
            await asyncio.to_thread(self.process.kill)
            if self.server is not None:
                await self.server.close()
            self.process.start()
            self.server = VLLMServer(self.process.url, timeout_s=self.timeout_s)
            await self.process.ready(self.server, timeout_s)
            self.prepared = False
        assert self.server is not None
        self.starts += 1
        self.version = await self.server.version()

    async def update(self, parcel: Parcel, *, keep_cache: bool) -> None:
        """Raises :class:`EngineError`; then nobody knows which weights the server has."""
        assert self.server is not None
        self.version = UNKNOWN_VERSION
        if not self.prepared:
            await self.server.prepare_updates()
            self.prepared = True
        await self.server.update(parcel.infos, parcel.version, keep_cache=keep_cache)
        self.version = parcel.version

    async def close(self) -> None:
        if self.process is not None:
            await self.process.stop()
        if self.server is not None:
            await self.server.close()


class VLLMEngine:
    """An :class:`agent_r1.rollout.engine.Engine` over one or more replicas.

    ``probe_s`` is the pause between looks at a foreign server that was lost. ``awaits``: foreign
    servers may still be starting when the first request comes.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        max_model_len: int,
        start_timeout_s: float = 600.0,
        probe_s: float = 2.0,
        sleeps: bool = False,
        awaits: bool = False,
        sender: FileSender | None = None,
    ) -> None:
        self._replicas = tuple(replicas)
        self._max_model_len = max_model_len
        self._start_timeout_s = start_timeout_s
        self._probe_s = probe_s
        self._sleeps = sleeps
        self._awaits = awaits
        self._sender = sender or FileSender()
        self._version = INITIAL_VERSION
        self._keep_cache = False
        self._publications = 0
        self._updated = asyncio.Event()
        self._updated.set()
        self._mark = secrets.token_hex(4)
        self._homes: dict[str, tuple[Replica, int]] = {}
        """Of each trajectory: its replica, and the publication that it began with."""
        self._recoveries: dict[Replica, asyncio.Task[None]] = {}
        self._fatal: EngineError | None = None
        self._starting: asyncio.Future[None] | None = None
        self._asleep = False
        self.repeated = 0
        """Completions that were asked for again because a replica was lost."""

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def replicas(self) -> Sequence[Replica]:
        return self._replicas

    def open(self, request_ids: Sequence[str]) -> None:
        """Servers need no announcement."""

    def release(self, request_id: str) -> None:
        self._homes.pop(request_id, None)

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> Completion:
        await self._start()
        for attempt in range(_ATTEMPTS):
            await self._updated.wait()
            replica = await self._route(request_id)
            assert replica.server is not None
            replica.load += 1
            try:
                served, salt = replica.version, self._salt(request_id)
                completion = await replica.server.generate(prompt_ids, params, salt)
                return _dated(completion, served, replica)
            except Unreachable as error:
                self._lose(replica, error)
                self._homes.pop(request_id, None)
                self.repeated += 1
                if attempt + 1 == _ATTEMPTS:
                    raise EngineError(f"{_ATTEMPTS} attempts failed: {error}") from error
            finally:
                replica.load -= 1
        raise AssertionError("unreachable")

    async def load_weights(
        self, source: WeightSource, version: int, *, keep_cache: bool = False
    ) -> int:
        """Have all replicas that are there serve ``version``; the others follow.

        Raises :class:`EngineError` if none of them took it: then nothing has changed.
        """
        await self._start()
        await self._wake()
        parcel = await asyncio.to_thread(self._sender.pack, source, version)
        ready = await self._ready()
        self._updated.clear()
        try:
            outcomes = await asyncio.gather(
                *(self._update(replica, parcel, keep_cache) for replica in ready)
            )
            if not any(outcomes):
                self._sender.discard(parcel)
                raise EngineError(f"no vLLM server took version {version}; see the log for each")
            self._version = version
            self._keep_cache = keep_cache
            self._publications += 1
            self._sender.keep(parcel)
        finally:
            self._updated.set()
        return parcel.size

    async def rest(self) -> None:
        """Give the memory up while the trainer needs it, where that is configured."""
        if self._sleeps and not self._asleep:
            await self._everywhere(lambda server: server.sleep(1))
            self._asleep = True

    async def close(self) -> None:
        for task in self._recoveries.values():
            task.cancel()
        await asyncio.gather(*self._recoveries.values(), return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        self._sender.close()

    # --- replicas -------------------------------------------------------------------

    async def _start(self) -> None:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start_all())
        await asyncio.shield(self._starting)

    async def _start_all(self) -> None:
        await asyncio.gather(*(self._start_one(replica) for replica in self._replicas))

    async def _start_one(self, replica: Replica) -> None:
        try:
            await replica.start(self._start_timeout_s)
        except Unreachable:
            if not self._awaits:
                raise
            _LOG.warning("waiting for %s, which is starting", replica.name)
            self._recoveries[replica] = asyncio.create_task(self._return(replica))
        else:
            replica.ready = True
            replica.version = self._version

    async def _wake(self) -> None:
        if self._asleep:
            await self._everywhere(lambda server: server.wake())
            self._asleep = False

    async def _everywhere(self, call: Any) -> None:
        servers = [r.server for r in self._replicas if r.ready and r.server is not None]
        await asyncio.gather(*(call(server) for server in servers))

    async def _update(self, replica: Replica, parcel: Parcel, keep_cache: bool) -> bool:
        try:
            await replica.update(parcel, keep_cache=keep_cache)
        except EngineError as error:
            self._lose(replica, error)
            return False
        return True

    def _salt(self, request_id: str) -> str:
        """Keys and values are reused only by requests that give the same one.

        Never those of another run, nor of other weights of the same number: a server may have
        served either before.
        """
        began = self._homes[request_id][1]
        return f"{self._mark}.{began if self._keep_cache else self._publications}"

    async def _ready(self) -> Sequence[Replica]:
        """Replicas that can be updated now; waits for one that is being brought back."""
        deadline = time.monotonic() + self._start_timeout_s
        while not (ready := [replica for replica in self._replicas if replica.ready]):
            self._check(deadline)
            await asyncio.sleep(0.05)
        return ready

    def _check(self, deadline: float) -> None:
        if self._fatal is not None:
            raise EngineError(str(self._fatal))
        if time.monotonic() > deadline:
            raise EngineError(
                f"no vLLM server serves version {self._version}; they are lost or behind"
            )

    async def _route(self, request_id: str) -> Replica:
        """The trajectory's own replica, or the one with the least to do; waits for one."""
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            home = self._homes.get(request_id)
            if home is not None and self._serves(home[0]):
                return home[0]
            usable = [replica for replica in self._replicas if self._serves(replica)]
            if usable:
                chosen = min(usable, key=lambda replica: replica.load)
                self._homes[request_id] = (chosen, home[1] if home else self._publications)
                return chosen
            self._check(deadline)
            await asyncio.sleep(0.05)

    def _serves(self, replica: Replica) -> bool:
        return replica.ready and replica.version == self._version

    def _lose(self, replica: Replica, error: EngineError) -> None:
        """No requests for it until it is back."""
        if replica in self._recoveries and not self._recoveries[replica].done():
            return
        replica.ready = False
        _LOG.warning("lost %s: %s", replica.name, error)
        broken = isinstance(error, ServerFailed | Wedged) or replica.version == UNKNOWN_VERSION
        work: Coroutine[Any, Any, None] = (
            self._return(replica) if replica.process is None else self._restart(replica, broken)
        )
        self._recoveries[replica] = asyncio.create_task(work)

    async def _restart(self, replica: Replica, broken: bool) -> None:
        """Bring our own process back: as it is if it is well, else from the beginning."""
        for attempt in range(3):
            try:
                if broken or attempt or not await self._well(replica):
                    await replica.start(self._start_timeout_s)
                await self._catch_up(replica)
                return
            except EngineError as error:
                _LOG.warning("%s does not come back: %s", replica.name, error)
                failure = error
        self._fatal = EngineError(f"vLLM was started three times and failed: {failure}")

    async def _return(self, replica: Replica) -> None:
        """Look for a foreign server until it answers, however long."""
        while True:
            await asyncio.sleep(self._probe_s)
            try:
                assert replica.server is not None
                if await replica.server.alive():
                    version = await replica.server.version()
                    torn = replica.version == UNKNOWN_VERSION and version != INITIAL_VERSION
                    replica.prepared = replica.prepared and (torn or version == replica.version)
                    replica.version = UNKNOWN_VERSION if torn else version
                    await self._catch_up(replica)
                    return
            except EngineError as error:
                _LOG.info("%s is there and not usable: %s", replica.name, error)

    async def _well(self, replica: Replica) -> bool:
        """Whether the process only broke one connection."""
        assert replica.process is not None and replica.server is not None
        return not replica.process.ended and await replica.server.alive()

    async def _catch_up(self, replica: Replica) -> None:
        while replica.version != self._version:
            if self._sender.current is None:  # nothing was published yet
                if replica.version != UNKNOWN_VERSION:
                    replica.version = self._version
                break
            await replica.update(self._sender.current, keep_cache=False)
        replica.ready = True
        if replica.version == INITIAL_VERSION:
            _LOG.warning("%s is ready", replica.name)
        else:
            _LOG.warning("%s serves version %d", replica.name, replica.version)


def _dated(completion: Completion, served: int, replica: Replica) -> Completion:
    """The completion, if the server said by which weights it was sampled."""
    if served != INITIAL_VERSION and completion.versions[0][1] == INITIAL_VERSION:
        raise EngineError(
            f"{replica.name} does not say which weights sampled which token; vLLM does from 0.32 on"
        )
    return completion
