"""Spans of OpenTelemetry: where the time of a step, a trajectory, a call and an update goes.

Off unless asked for, and then a name and a few attributes a span. ``agent-r1 train`` sends them
where the standard variables say (``pip install 'agent-r1[otel]'``)::

    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 agent-r1 train ...

A program of one's own hands over a tracer: ``tracing.use(provider.get_tracer("agent_r1"))``.
Spans: ``step``, in it its phases (``gen``, ``update_actor``, ``update_weights`` …, the names of
``timing_s/*``) and ``transfer``; ``trajectory``, in it ``engine call`` and ``tool call``. A
trajectory that is sampled beside the training belongs to the step in which it began.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from agent_r1.errors import ConfigError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_tracer: Any = None


def use(tracer: Any) -> None:
    """Send spans to a tracer of OpenTelemetry from now on; None: to nobody."""
    global _tracer
    _tracer = tracer


def span(name: str, **attributes: str | int | float) -> AbstractContextManager[Any]:
    """A span around a ``with`` block; an exception that leaves the block is recorded in it."""
    if _tracer is None:
        return contextlib.nullcontext()
    named = {f"agent_r1.{key}": value for key, value in attributes.items()}
    started: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=named)
    return started


@contextlib.contextmanager
def exported(service: str) -> Iterator[None]:
    """Send the spans of the block where the environment says, if it says so.

    Raises:
        ConfigError: it does, and the packages are not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{' or '.join(ENDPOINTS)} asks for traces, which need pip install 'agent-r1[otel]'; "
            "install it or unset the variable"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    # Spans wait in a bounded queue; a collector that is slow or gone loses them and stops nothing.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=5)))
    use(provider.get_tracer("agent_r1"))
    try:
        yield
    finally:
        use(None)
        provider.shutdown()
