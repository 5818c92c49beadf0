"""The controller alone: how many trajectories and environment steps one event loop carries.

    python benchmarks/controller.py [trajectories] [turns]

Engines are scripts: a completion of 64 tokens after 50 to 150 ms, as if by vLLM elsewhere. The
environment answers at once, asynchronously. All trajectories are under way together. Prints
environment steps per second, memory per trajectory, and with PROFILE=1 where the time goes.
"""

import asyncio
import json
import os
import random
import resource
import sys
import time
import tracemalloc

from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Completion, Finish, Task

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
TURNS = int(sys.argv[2]) if len(sys.argv) > 2 else 4
IDS = tuple(b"<code>print(6 * 7)</code>".ljust(64, b" "))
LOGPROBS = (-0.5,) * len(IDS)


class ScriptedEngines:
    max_model_len = 1 << 16

    def __init__(self):
        self.under_way = self.most = 0

    def open(self, request_ids):
        self.under_way += len(request_ids)
        self.most = max(self.most, self.under_way)

    def release(self, request_id):
        self.under_way -= 1

    async def generate(self, prompt_ids, params, request_id):
        await asyncio.sleep(0.05 + 0.1 * random.random())
        return Completion(IDS, LOGPROBS, Finish.STOP, ((0, 3),), "</code>")


class Answers(BaseToolEnv):
    stop_strings = ("</code>",)

    def step(self, raw_response):
        return "\n<interpreter>42</interpreter>\n", [True], True

    async def astep(self, raw_response):
        return self.step(raw_response)


async def scored(trajectory):
    return trajectory


async def main():
    engine = ScriptedEngines()
    limits = LoopLimits(max_turns=TURNS, max_response_length=1 << 14)
    loop = AgentLoop(engine, Codec(byte_tokenizer(chat_template=None)), Answers(), limits)
    runner = GroupRunner(loop, engine, scored)
    groups = [Group(Task(str(i), "x" * 300), f"g{i}", 8) for i in range(COUNT // 8)]
    measured = bool(os.environ.get("MEMORY"))
    if measured:
        tracemalloc.start()
    began = time.perf_counter()
    found = await runner.run(groups, Sampling())
    seconds = time.perf_counter() - began
    steps = sum(len(t.turns) for t in found)
    row = {
        "trajectories": len(found),
        "at_once": engine.most,
        "failed": sum(t.outcome.failed for t in found),
        "env_steps": steps,
        "seconds": round(seconds, 2),
        "env_steps_per_s": round(steps / seconds),
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    if measured:
        row["peak_kib_per_trajectory"] = round(tracemalloc.get_traced_memory()[1] / COUNT / 1024, 1)
    print(json.dumps(row))


if __name__ == "__main__":
    if os.environ.get("PROFILE"):
        import cProfile
        import pstats

        profile = cProfile.Profile()
        profile.runcall(asyncio.run, main())
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    else:
        asyncio.run(main())
