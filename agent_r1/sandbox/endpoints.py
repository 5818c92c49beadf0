"""Which of several sandboxes gets the next program.

Pure bookkeeping without input or output: the client tells what happened, the balancer says
where to go. Load is what *this* client has under way, per slot that the endpoint announced,
so that a machine of 64 cores gets more than one of 2. An endpoint that failed rests, longer
each time, and is taken back by a single trial request; one that was merely full rests for as
long as it asked and stays in good standing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

FIRST_REST = 0.25
LONGEST_REST = 15.0
UNKNOWN_SLOTS = 1 << 16
FOREIGN_SLOTS = 8


@dataclass(slots=True, eq=False)
class Endpoint:
    """One address and what is known about it."""

    url: str
    slots: int | None = None
    """``None`` until it has answered: then it is taken for large, so that it is soon asked."""
    in_flight: int = 0
    failures: int = 0
    """In a row. Above zero the endpoint is on trial."""
    rests_until: float = 0.0

    @property
    def on_trial(self) -> bool:
        return self.failures > 0

    @property
    def load(self) -> float:
        return (self.in_flight + 1) / (self.slots or UNKNOWN_SLOTS)


@dataclass(slots=True)
class Balancer:
    """Least load first; ties at random, so that many clients do not move in step."""

    endpoints: list[Endpoint]
    clock: Callable[[], float] = time.monotonic
    random: random.Random = field(default_factory=random.Random)

    @classmethod
    def of(cls, urls: Iterable[str]) -> Balancer:
        return cls([Endpoint(url) for url in urls])

    def pick(self) -> Endpoint | None:
        """The endpoint for the next request, or ``None`` when all rest."""
        now = self.clock()
        ready = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.rests_until <= now and not (endpoint.on_trial and endpoint.in_flight)
        ]
        if not ready:
            return None
        least = min(endpoint.load for endpoint in ready)
        return self.random.choice([endpoint for endpoint in ready if endpoint.load == least])

    def pause(self) -> float:
        """Seconds after which :meth:`pick` is worth another try; between 10 ms and 1 s."""
        until = min(endpoint.rests_until for endpoint in self.endpoints)
        return min(1.0, max(0.01, until - self.clock()) * self.random.uniform(1.0, 1.2))

    def succeeded(self, endpoint: Endpoint, slots: int | None = None) -> None:
        """It answered, whatever it said. A foreign server does not say how large it is."""
        endpoint.failures = 0
        endpoint.rests_until = 0.0
        endpoint.slots = max(1, slots or FOREIGN_SLOTS)

    def failed(self, endpoint: Endpoint) -> None:
        """It is dead, or broken. What else was under way there and fails, too, counts once."""
        if self.clock() < endpoint.rests_until:
            return
        rest = min(LONGEST_REST, FIRST_REST * 2.0 ** min(endpoint.failures, 16))
        endpoint.failures += 1
        endpoint.rests_until = self.clock() + rest * self.random.uniform(0.5, 1.0)

    def busy(self, endpoint: Endpoint, seconds: float) -> None:
        """It is alive and asked for patience."""
        endpoint.failures = 0
        endpoint.rests_until = self.clock() + min(seconds, LONGEST_REST)
