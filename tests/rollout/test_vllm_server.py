"""Connections to a vLLM server: what broke, what is slow and what is wedged."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager

import pytest

from agent_r1.errors import EngineError
from agent_r1.rollout.engines.vllm_server import ServerFailed, Unreachable, VLLMServer, Wedged
from agent_r1.types import SamplingParams

PARAMS = SamplingParams(8)
ANSWER = {
    "choices": [
        {
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [7],
            "logprobs": {"content": [{"logprob": -1.0}]},
            "weight_versions": [{"version": "3", "start": 0, "end": 1}],
        }
    ]
}


class Server:
    """Speaks HTTP/1.1 on a port of its own; ``tokens`` is what its metrics say."""

    def __init__(self):
        self.connections = 0
        self.requests = []
        self.tokens = 0.0
        self.answers = 1 << 30
        """Answers that a connection gives before it is closed on the next request."""
        self.hold = None
        self.status = 200
        self.completion = ANSWER

    async def __call__(self, reader, writer):
        self.connections += 1
        given = 0
        try:
            while line := await reader.readline():
                _, path, _ = line.decode().split()
                length = 0
                while (header := await reader.readline()).strip():
                    name, value = header.decode().split(":", 1)
                    length = int(value) if name.lower() == "content-length" else length
                await reader.readexactly(length)
                if given == self.answers:
                    return
                given += 1
                self.requests.append(path)
                writer.write(await self.answer(path))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def answer(self, path):
        if path == "/metrics":
            body = (
                "# HELP vllm:generation_tokens_total Tokens.\n"
                f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}\n'
                f'vllm:prompt_tokens_total{{engine="0"}} {2 * self.tokens}\n'
                'vllm:iteration_tokens_total_sum{engine="0"} 1e9\n'
            )
        else:
            if self.hold is not None and path.endswith("/generate"):
                await self.hold.wait()
            body = json.dumps(self.completion)
        head = f"HTTP/1.1 {self.status} .\r\nContent-Length: {len(body)}\r\n\r\n"
        return (head + body).encode()


@asynccontextmanager
async def served(timeout_s=5.0):
    script = Server()
    listener = await asyncio.start_server(script, "127.0.0.1", 0)
    server = VLLMServer(
        f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", timeout_s=timeout_s
    )
    try:
        yield script, server
    finally:
        await server.close()
        listener.close()


def run(body):
    return asyncio.run(asyncio.wait_for(body, 30))


def test_a_connection_that_the_server_had_closed_loses_no_request():
    async def body():
        async with served() as (script, server):
            script.answers = 1
            for _ in range(3):
                completion = await server.generate([1], PARAMS, "s")
                assert completion.token_ids == (7,)
            assert script.connections >= 3
            assert len(script.requests) == 3

    run(body())


def test_a_server_that_closes_every_connection_is_unreachable_and_not_wedged():
    async def body():
        async with served() as (script, server):
            script.answers = 0
            with pytest.raises(Unreachable) as caught:
                await server.generate([1], PARAMS, "s")
            assert not isinstance(caught.value, Wedged | ServerFailed)

    run(body())


def test_what_changes_the_server_is_asked_for_by_a_new_connection_and_once():
    async def body():
        async with served() as (script, server):
            for _ in range(3):
                await server.post("/pause")
            assert (script.connections, script.requests) == (3, ["/pause"] * 3)
            script.answers = 0
            with pytest.raises(Unreachable):
                await server.post("/start_weight_update")
            assert script.connections == 4

    run(body())


def test_a_completion_may_take_as_long_as_it_likes_while_the_server_computes():
    async def body():
        async with served(timeout_s=0.1) as (script, server):
            script.hold = asyncio.Event()
            job = asyncio.create_task(server.generate([1], PARAMS, "s"))
            while script.requests.count("/metrics") < 6:
                script.tokens += 1
                await asyncio.sleep(0.01)
            assert not job.done()
            script.hold.set()
            assert (await job).versions == ((0, 3),)

    run(body())


CHOICE = ANSWER["choices"][0]


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [{**CHOICE, "token_ids": ["7"]}]},
        {"choices": [{**CHOICE, "logprobs": {"content": [{"logprob": None}]}}]},
        {"text": "another kind of server"},
    ],
)
def test_what_is_no_completion_is_an_error_that_says_so(answer):
    async def body():
        async with served() as (script, server):
            script.completion = answer
            with pytest.raises(EngineError, match="answers with no completion"):
                await server.generate([1], PARAMS, "s")

    run(body())


def test_a_server_that_computes_nothing_is_wedged():
    async def body():
        async with served(timeout_s=0.1) as (script, server):
            script.hold = asyncio.Event()
            script.tokens = 5.0
            with pytest.raises(Wedged, match="computed nothing"):
                await server.generate([1], PARAMS, "s")
            assert script.requests.count("/metrics") == 2

    run(body())


def test_a_server_that_takes_weights_is_not_wedged():
    async def body():
        async with served(timeout_s=0.5) as (script, server):
            script.hold = asyncio.Event()
            pieces = itertools.repeat({})
            update = asyncio.create_task(server.update(pieces, 4, keep_cache=True))
            job = asyncio.create_task(server.generate([1], PARAMS, "s"))
            while script.requests.count("/metrics") < 4:
                await asyncio.sleep(0.01)
            assert not job.done()
            update.cancel()
            await asyncio.wait({update})
            with pytest.raises(Wedged):
                await job

    run(body())


def test_a_server_that_takes_no_connection_is_not_taken_for_wedged():
    """A full queue of connections: the machine is busy, the engine may be well."""

    async def body():
        import socket

        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(3)]
            for one in waiting:  # nobody accepts them
                one.setblocking(False)
                one.connect_ex(address)
            server = VLLMServer(f"http://127.0.0.1:{address[1]}", timeout_s=5.0, connect_s=0.2)
            with pytest.raises(Unreachable, match="no connection within") as caught:
                await server.generate([1], PARAMS, "s")
            assert not isinstance(caught.value, Wedged)
            await server.close()
            for one in waiting:
                one.close()

    run(body())


def test_an_engine_that_the_server_calls_dead_has_failed():
    async def body():
        async with served() as (script, server):
            script.status = 500
            with pytest.raises(ServerFailed):
                await server.generate([1], PARAMS, "s")

    run(body())
