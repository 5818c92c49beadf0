"""The tasks and the harness of ``rollout.py`` as a package of verifiers.

verifiers lets a harness run its loop in its own process if every model call goes through the
interception server of the rollout (``verifiers.v1.Harness.launch``). The packaged harness
``null`` starts a Python program for each rollout instead, which takes seconds of CPU time, so this
is the faster of its two ways.
"""

import asyncio
import json
import os

import aiohttp
import verifiers.v1 as vf
from rollout_peers_child import ANSWER, TOOL, TOOL_S, Job


class AskData(vf.TaskData):
    pass


class AskTask(vf.Task[AskData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def nothing(self, trace) -> float:
        return 0.0


class Asks(vf.Taskset[AskTask, vf.TasksetConfig]):
    """The prompts of the job."""

    def load(self):
        for prompt in Job(**json.loads(os.environ["ROLLOUT_JOB"])).prompts:
            yield AskTask(AskData(prompt=prompt), self.config.task)


class InProcess(vf.Harness[vf.HarnessConfig]):
    """Sends messages and runs the tool until the model calls none."""

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        messages = [{"role": "user", "content": data.prompt}]
        while True:
            body = {"model": ctx.model, "messages": messages, "tools": [TOOL]}
            async with session().post(
                f"{endpoint}/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {secret}"},
            ) as response:
                if response.status != 200:
                    raise RuntimeError(f"{response.status}: {await response.text()}")
                message = (await response.json())["choices"][0]["message"]
            messages.append(message)
            if not message.get("tool_calls"):
                return vf.ProgramResult(exit_code=0, stdout="", stderr="")
            messages += [await answered(call) for call in message["tool_calls"]]


async def answered(call):
    json.loads(call["function"]["arguments"])
    await asyncio.sleep(TOOL_S)
    return {"role": "tool", "tool_call_id": call["id"], "content": ANSWER}


_SESSIONS = []


def session():
    """One pool of connections for all rollouts."""
    if not _SESSIONS:
        _SESSIONS.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
    return _SESSIONS[0]


async def close_session():
    while _SESSIONS:
        await _SESSIONS.pop().close()


__all__ = ["Asks", "InProcess"]
