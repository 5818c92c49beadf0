"""Three ways to ask vLLM, from one process: what each costs and what its crash looks like.

    python benchmarks/vllm_seam.py http|llm|ray [rounds]

Run by an interpreter that has vLLM, this project and, for ``ray``, Ray. ``http`` is what the
trainer uses: a server of its own over its token routes. ``llm`` is ``AsyncLLM`` in the asking
process, whose engine is a child. ``ray`` is an actor that holds an ``AsyncLLM``. The model is a
random one of 0.1 M parameters, so that what is measured is the way to it. One line of JSON:
seconds of the start, milliseconds of one request of at most 16 tokens alone, requests a second
with 64 at once, seconds of an update of the weights, and after a SIGKILL of everything that
computes, the seconds until a request under way learns of it and the error that it gets.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.models.weights import ModuleWeights
from agent_r1.rollout.engines.vllm_open import environment, open_vllm
from agent_r1.rollout.engines.vllm_server import VLLMServer
from agent_r1.rollout.engines.vllm_weights import FileSender
from agent_r1.testing import byte_tokenizer, tiny_model
from agent_r1.types import SamplingParams

WINDOW, TOKENS, AT_ONCE = 256, 16, 64
SETTINGS = VLLMConfig(args=("--block-size", "32"), env={"OMP_NUM_THREADS": "1"})


class Http:
    async def start(self, folder: Path) -> None:
        rollout = RolloutConfig(name="vllm", max_num_seqs=AT_ONCE, vllm=SETTINGS)
        options = {"max_model_len": WINDOW, "dtype": "float32", "device": "cpu"}
        self.engine = open_vllm(rollout, folder, log_folder=folder, **options)
        await self.engine._start()
        self.server: VLLMServer = self.engine.replicas[0].server

    async def generate(self, prompt, tokens: int) -> int:
        params = SamplingParams(tokens, stop_token_ids=(), seed=1)
        return len((await self.server.generate(prompt, params, "x")).token_ids)

    async def update(self, parcel) -> None:
        if parcel.version == 0:
            await self.server.prepare_updates()
        await self.server.update(parcel.infos, parcel.version, keep_cache=False)

    async def close(self) -> None:
        await self.engine.close()


class Llm:
    async def start(self, folder: Path) -> None:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        options = {"model": str(folder), "dtype": "float32", "max_model_len": WINDOW}
        arguments = AsyncEngineArgs(
            **options,
            max_num_seqs=AT_ONCE,
            block_size=32,
            enforce_eager=True,
            enable_chunked_prefill=False,
            max_num_batched_tokens=2048,
            weight_transfer_config=WeightTransferConfig(backend="agent_r1_file"),
        )
        self.llm = AsyncLLM.from_engine_args(arguments)
        self.asked = 0

    async def generate(self, prompt, tokens: int) -> int:
        from vllm import SamplingParams as Params
        from vllm.inputs import TokensPrompt

        self.asked += 1
        params = Params(max_tokens=tokens, seed=1, logprobs=0)
        request = TokensPrompt(prompt_token_ids=list(prompt))
        async for answer in self.llm.generate(request, params, str(self.asked)):
            last = answer
        return len(last.outputs[0].token_ids)

    async def update(self, parcel) -> None:
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        if parcel.version == 0:
            await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        await self.llm.pause_generation(mode="keep", clear_cache=False)
        await self.llm.start_weight_update()
        for info in parcel.infos:
            await self.llm.update_weights(WeightTransferUpdateRequest(update_info=dict(info)))
        await self.llm.finish_weight_update(str(parcel.version))
        await self.llm.reset_prefix_cache(reset_running_requests=True)
        await self.llm.resume_generation()

    async def close(self) -> None:
        self.llm.shutdown()


class Ray:
    async def start(self, folder: Path) -> None:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        self.actor = ray.remote(Llm).options(max_concurrency=2 * AT_ONCE).remote()
        await self.actor.start.remote(folder)

    async def generate(self, prompt, tokens: int) -> int:
        return await self.actor.generate.remote(prompt, tokens)

    async def update(self, parcel) -> None:
        await self.actor.update.remote(parcel)

    async def close(self) -> None:
        import ray

        ray.shutdown()


WAYS = {"http": Http, "llm": Llm, "ray": Ray}


async def measure(way, rounds: int, folder: Path):
    began = time.perf_counter()
    await way.start(folder)
    row = {"start_s": round(time.perf_counter() - began, 1)}
    await asyncio.gather(*(way.generate([i] * 32, TOKENS) for i in range(AT_ONCE)))
    alone, rates, updates = [], [], []
    sender, model = FileSender(), model_of()
    for number in range(rounds):
        for i in range(8):
            began = time.perf_counter()
            await way.generate([number, i] * 16, TOKENS)
            alone.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        calls = (way.generate([number, i] * 16, TOKENS) for i in range(2 * AT_ONCE))
        await asyncio.gather(*calls)
        rates.append(2 * AT_ONCE / (time.perf_counter() - began))
        parcel = sender.pack(ModuleWeights(model), number)
        began = time.perf_counter()
        await way.update(parcel)
        updates.append(time.perf_counter() - began)
    row["request_ms"] = round(statistics.median(alone), 1)
    row["requests_per_s"] = round(statistics.median(rates), 1)
    row["update_s"] = round(statistics.median(updates), 3)
    sender.close()
    return row | await crash(way)


async def crash(way):
    job = asyncio.create_task(way.generate([7] * 32, WINDOW - 40))
    await asyncio.sleep(0.3)
    for process in psutil.Process().children(recursive=True):
        if any(word in process.name() for word in ("VLLM", "EngineCore", "Worker")):
            os.kill(process.pid, signal.SIGKILL)
    began = time.perf_counter()
    try:
        await asyncio.wait_for(job, 60)
        told = "nothing: it had finished"
    except Exception as error:
        told = type(error).__name__
    return {"crash_s": round(time.perf_counter() - began, 2), "crash_error": told}


def model_of():
    return tiny_model(len(byte_tokenizer()), hidden_size=64, heads=2, kv_heads=1)


async def run(name: str, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model_of().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        way = WAYS[name]()
        try:
            row = {"way": name} | await measure(way, rounds, folder)
            print(json.dumps(row), flush=True)
        finally:
            await way.close()


if __name__ == "__main__":
    for key, value in environment(SETTINGS, "cpu").items():
        os.environ.setdefault(key, value)
    asyncio.run(run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5))
