"""What the tests of the endpoint share: a session over a script, and a client that asks it."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.endpoint.server import Endpoint, ServerLimits, serving
from agent_r1.rollout.endpoint.session import Session
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.types import Outcome, Task, Trajectory

openai = pytest.importorskip("openai")
TOKENIZER = byte_tokenizer()
LIMITS = LoopLimits(max_turns=20, max_response_length=4000)
USER = {"role": "user", "content": "What is 6 * 7?"}
ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}},
}


def session_of(script, *, limits=LIMITS, max_model_len=1 << 14, **options):
    codec = Codec(TOKENIZER)
    replies = iter(script)
    engine = ScriptedEngine(TOKENIZER, lambda call: next(replies), max_model_len=max_model_len)
    renderer = ChatRenderer(codec)
    return Session("g/0", engine, codec, renderer, limits, Sampling(), **options), engine


@asynccontextmanager
async def asked(session, **options):
    """A client of an endpoint with this one session."""
    endpoint = Endpoint("policy", ServerLimits(**options))
    async with serving(endpoint) as url:
        key = endpoint.open(session)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield client


def run(session, agent, **options):
    async def main():
        async with asked(session, **options) as client:
            return await agent(client)

    return asyncio.run(main())


async def chat(client, messages, **options):
    answer = await client.chat.completions.create(model="policy", messages=messages, **options)
    return answer.choices[0]


def samples(session):
    task = Task("t", (USER,))
    return Trajectory(task, "g", 0, session.turns(), Outcome.FINISHED).samples()


def text(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def learned(sample):
    """The parts of a sample that the policy is trained on."""
    pieces, before = [], 0
    for token, mask in zip(sample.token_ids, sample.loss_mask, strict=True):
        if mask and not before:
            pieces.append([])
        if mask:
            pieces[-1].append(token)
        before = mask
    return [text(piece) for piece in pieces]


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>'
