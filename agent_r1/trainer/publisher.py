"""From an update to an engine that serves it."""

from __future__ import annotations

import asyncio
import logging
import time

from torch import Tensor

from agent_r1.errors import EngineError
from agent_r1.rollout.engine import Engine, RestingEngine, WeightSource
from agent_r1.tracing import span

_LOG = logging.getLogger(__name__)


class WeightPublisher:
    """Gives an engine each version of the weights; failures are retried.

    While a version is not there the engine serves the one before. ``tolerance`` is how many
    versions it may be behind before the run stops. ``copies``: the engine computes with the
    tensors that it is given, so it must get copies if it samples while they are updated.
    ``keep_cache``: what is under way keeps the keys and values of older weights.
    """

    def __init__(
        self,
        engine: Engine,
        source: WeightSource,
        *,
        tolerance: int = 0,
        copies: bool = False,
        keep_cache: bool = False,
        attempts: int = 3,
        pause_s: float = 1.0,
    ) -> None:
        self._engine = engine
        self._source = source
        self._tolerance = tolerance
        self._copies = copies
        self._keep_cache = keep_cache
        self._attempts = attempts
        self._pause_s = pause_s
        self.version: int | None = None
        """What the engine serves."""

    async def rest(self) -> None:
        """The engine has nothing to sample before the next version: its memory may go."""
        if isinstance(self._engine, RestingEngine):
            await self._engine.rest()

    async def publish(self, version: int) -> dict[str, float]:
        """Have ``version`` served. Metrics: seconds, bytes, the version served, failures.

        Raises :class:`EngineError` when the engine falls further behind than is allowed.
        """
        started = time.perf_counter()
        size, failures = 0, 0
        for attempt in range(self._attempts):
            try:
                source = _copy(self._source) if self._copies else self._source
                with span("transfer", version=version):
                    size = await self._engine.load_weights(
                        source, version, keep_cache=self._keep_cache
                    )
                self.version = version
                break
            except EngineError as error:
                failures += 1
                self._judge(error, version, last=attempt + 1 == self._attempts)
                await asyncio.sleep(self._pause_s * attempt)
        return {
            "weights/seconds": time.perf_counter() - started,
            "weights/bytes": float(size),
            "weights/version": float(-1 if self.version is None else self.version),
            "weights/failures": float(failures),
        }

    def _judge(self, error: EngineError, version: int, *, last: bool) -> None:
        if not last:
            return
        behind = None if self.version is None else version - self.version
        if behind is None or behind > self._tolerance:
            raise EngineError(
                f"version {version} of the weights did not reach the engine in {self._attempts} "
                f"attempts: {error}"
            ) from error
        _LOG.warning(
            "the engine goes on with version %s: %s did not reach it (%s)",
            *(self.version, version, error),
        )


def _copy(source: WeightSource) -> dict[str, Tensor]:
    """Tensors that no later update changes; frozen ones never change and are not copied."""
    return {
        name: tensor.detach().clone() if tensor.requires_grad else tensor
        for name, tensor in source.parameters()
    }
