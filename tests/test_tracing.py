"""Spans tell where the time went, and cost nothing where nobody asks."""

import asyncio
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from agent_r1 import tracing
from agent_r1.errors import ConfigError
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.trainer.clock import Clock
from agent_r1.trainer.threads import in_thread
from agent_r1.types import Task


@pytest.fixture
def spans():
    """The finished spans of a test: ``{name: [span, …]}``."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider.get_tracer("test"))
    yield lambda name: [s for s in exporter.get_finished_spans() if s.name == name]
    tracing.use(None)
    provider.shutdown()


def test_nothing_is_made_where_nobody_asks():
    assert isinstance(tracing.span("step", number=1), nullcontext)


def test_phases_belong_to_their_step_in_the_learners_thread_too(spans):
    clock = Clock()

    def learn():
        with clock("update_actor"):
            pass

    async def step():
        with tracing.span("step", number=3):
            with clock("gen"):
                pass
            await in_thread(learn)

    asyncio.run(step())
    (whole,) = spans("step")
    assert whole.attributes == {"agent_r1.number": 3}
    for phase in ("gen", "update_actor"):
        (part,) = spans(phase)
        assert part.parent.span_id == whole.context.span_id
    assert "timing_s/update_actor" in clock.metrics()


def test_an_exception_marks_its_span(spans):
    with pytest.raises(ValueError), tracing.span("tool call"):
        raise ValueError("no such tool")
    (span,) = spans("tool call")
    assert not span.status.is_ok and "no such tool" in span.status.description


def test_the_command_sends_spans_where_the_environment_says(monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *told):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with tracing.exported("agent-r1 train"), tracing.span("step"), tracing.span("gen"):
        pass
    server.shutdown()
    thread.join()
    server.server_close()
    assert isinstance(tracing.span("step"), nullcontext)
    ((path, body),) = got
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert path == "/v1/traces"
    assert {s.name for scope in resource.scope_spans for s in scope.spans} == {"step", "gen"}
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert named["service.name"] == "agent-r1 train"


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"agent-r1\[otel\]"), tracing.exported("x"):
        pass


class Echo(BaseToolEnv):
    def step(self, raw_response):
        return "[1]", [True], "go on" in raw_response


async def keep(trajectory):
    return trajectory


def test_calls_belong_to_their_trajectory(spans):
    codec = Codec(byte_tokenizer())
    engine = ScriptedEngine(codec.tokenizer, ["go on", "done"])
    loop = AgentLoop(engine, codec, Echo(), LoopLimits(max_turns=4, max_response_length=100))
    runner = GroupRunner(loop, engine, keep)
    group = Group(Task("t", "question"), "g", n=1)
    asyncio.run(runner.run([group], Sampling()))
    (whole,) = spans("trajectory")
    assert whole.attributes == {"agent_r1.id": "g/0", "agent_r1.task": "t"}
    calls = spans("engine call") + spans("tool call")
    assert [call.name for call in calls] == ["engine call"] * 2 + ["tool call"] * 2
    assert {call.parent.span_id for call in calls} == {whole.context.span_id}
    assert all(whole.start_time <= c.start_time <= c.end_time <= whole.end_time for c in calls)
