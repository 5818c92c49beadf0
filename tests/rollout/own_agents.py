"""Agents for ``test_own_loop.py``: functions and a command, with the plain ``openai`` client."""

import asyncio
import json
import sys
import time

import openai


async def polite(call, questions=2):
    """Asks, thanks, asks again."""
    async with openai.AsyncOpenAI(base_url=call.base_url, api_key=call.api_key) as client:
        history = call.messages
        for _ in range(questions):
            answer = await client.chat.completions.create(model=call.model, messages=history)
            history.append(answer.choices[0].message)
            history.append({"role": "user", "content": "Thanks. And now?"})
    return {"output": answer.choices[0].message.content, "reward": 0.5, "turns": questions}


def blocking(call):
    """The same without asyncio, in a thread."""
    with openai.OpenAI(base_url=call.base_url, api_key=call.api_key) as client:
        answer = client.chat.completions.create(model=call.model, messages=call.messages)
    return answer.choices[0].message.content


def greedy(call):
    """Asks until it is refused, and takes that for the end."""
    with openai.OpenAI(base_url=call.base_url, api_key=call.api_key) as client:
        while True:
            try:
                client.chat.completions.create(model=call.model, messages=call.messages)
            except openai.BadRequestError:
                return "enough"


async def clumsy(call):
    """Asks, and falls over the answer."""
    await polite(call, questions=1)
    raise ValueError("no JSON in the answer")


async def lazy(call):
    """Never asks."""
    return "42"


async def endless(call):
    """Asks, and then does something else for ever."""
    await polite(call, questions=1)
    await asyncio.sleep(3600)


def strange(call):
    return object()


if __name__ == "__main__":
    given = json.load(sys.stdin)
    assert "answer" not in given
    with openai.OpenAI() as client:  # address and key are in the environment
        answer = client.chat.completions.create(model=given["model"], messages=given["messages"])
    if "--sleep" in sys.argv:
        time.sleep(3600)
    if "--fail" in sys.argv:
        sys.exit("the agent is tired")
    result = {"output": answer.choices[0].message.content, "reward": 0.25}
    sys.stdout.write(f"some noise\n{json.dumps(result)}\n")
