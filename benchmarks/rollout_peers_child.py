"""The work that ``rollout.py`` measures, and the process that does it.

``ROLLOUT_JOB=… python rollout_peers_child.py`` runs one round of one system against the server, as
the :class:`Job` (JSON) says, and prints the measurement as JSON. It runs in the environment of any
of the systems, so that it imports each only where it is used. Imports, tokenizers and the start
of TRL's own process are not measured.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AT_ONCE, TURNS, TOKENS, TOOL_S = 64, 3, 32, 0.5
ANSWER = "The tool says 42."
LIMIT = 2 * TOKENS
"""Tokens that a turn may have. It ends before, with the token that ends a turn."""
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {"question": {"type": "string", "description": "What to look up."}},
            "required": ["question"],
        },
    },
}


@dataclass(frozen=True)
class Job:
    """What a child process is told, as JSON."""

    system: str
    url: str
    folder: str
    prompts: list[str]
    tool_s: float


@dataclass(frozen=True)
class Did:
    """What a system says that it did."""

    seconds: float
    cpu_seconds: float
    trajectories: int
    tokens: int
    tool_calls: int


class Clock:
    """Wall clock and CPU time of this process and of those that it started."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = cpu_of(os.getpid())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._began, cpu_of(os.getpid()) - self._cpu


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its descendants, those that ended among them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_of(child) for child in children)


def served(url: str) -> dict[str, int]:
    """Tokens that the server has computed since it started."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r"^vllm:(prompt|generation)_tokens_total(?:\{.*\})? (\S+)$", text, re.M)
    counts = {"prompt": 0, "generation": 0}
    for kind, number in found:
        counts[kind] += round(float(number))
    return counts


def main() -> None:
    job = Job(**json.loads(os.environ["ROLLOUT_JOB"]))
    logging.disable(logging.INFO)
    before = served(job.url)
    runs = {"ours": run_ours, "trl": run_trl, "trl_trainer": run_trl_trainer}
    runs["verifiers"] = run_verifiers
    did = runs[job.system](job)
    after = served(job.url)
    counts = {f"served_{kind}_tokens": after[kind] - before[kind] for kind in before}
    print(json.dumps(vars(did) | counts))


# --- this project ------------------------------------------------------------------------------


def run_ours(job: Job) -> Did:
    return asyncio.run(_ours(job))


async def _ours(job: Job) -> Did:
    from agent_r1.config.policy import RolloutConfig
    from agent_r1.models.load import load_tokenizer
    from agent_r1.rollout.agent_loop import AgentLoop
    from agent_r1.rollout.codec import Codec
    from agent_r1.rollout.engines.vllm_open import open_vllm
    from agent_r1.rollout.group import Group, GroupRunner
    from agent_r1.rollout.limits import LoopLimits, Sampling
    from agent_r1.tool.base import BaseTool, ToolResult
    from agent_r1.tool.envs.nous import NousToolEnv
    from agent_r1.types import Task

    class LookUp(BaseTool):
        name = TOOL["function"]["name"]
        description = TOOL["function"]["description"]
        parameters = TOOL["function"]["parameters"]

        async def aexecute(self, args):
            await asyncio.sleep(job.tool_s)
            return ToolResult(ANSWER, True)

        def execute(self, args):
            raise NotImplementedError

    async def scored(trajectory):
        return trajectory

    folder = Path(job.folder)
    settings = RolloutConfig(name="vllm", endpoints=[job.url])
    engine = open_vllm(
        settings, folder, max_model_len=512, dtype="float32", device="cpu", log_folder=folder
    )
    limits = LoopLimits(max_turns=TURNS, max_response_length=400, max_tokens_per_turn=LIMIT)
    loop = AgentLoop(engine, Codec(load_tokenizer(folder)), NousToolEnv([LookUp()]), limits)
    runner = GroupRunner(loop, engine, scored, max_concurrency=AT_ONCE)
    groups = [
        Group(Task(str(i), ({"role": "user", "content": prompt},)), str(i))
        for i, prompt in enumerate(job.prompts)
    ]
    try:
        clock = Clock()
        found = await runner.run(groups, Sampling())
        seconds, cpu = clock.read()
    finally:
        await engine.close()
    failed = [t.error for t in found if t.outcome.failed]
    if failed:
        raise SystemExit(f"{len(failed)} trajectories failed: {failed[0]}")
    tokens = sum(turn.completion.length for t in found for turn in t.turns)
    calls = sum(len(turn.tool_calls) for t in found for turn in t.turns)
    return Did(seconds, cpu, len(found), tokens, calls)


# --- TRL ---------------------------------------------------------------------------------------


async def look_up(question: str):  # a return type would be part of the prompt
    """
    Look something up.

    Args:
        question: What to look up.
    """
    await asyncio.sleep(TOOL_S)
    return ANSWER


def no_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


def run_trl(job: Job) -> Did:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.async_grpo import async_rollout_worker

    # The worker asks for vLLM, of which only the weight transfer uses anything.
    async_rollout_worker.is_vllm_available = lambda: True
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in job.prompts]
    worker = async_rollout_worker.AsyncRolloutWorker(
        model_name="policy",
        dataset=Dataset.from_list(rows),
        reward_funcs=[no_reward],
        processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        tools=[look_up],
        num_generations=1,
        max_inflight_tasks=AT_ONCE,
        vllm_server_url=job.url,
        max_tokens=LIMIT,
    )
    PartialState()  # what its log asks for
    worker._loop_cls = once_through()
    worker.start()
    try:
        clock = Clock()
        samples = _collected(worker, len(rows))
        seconds, cpu = clock.read()
    finally:
        worker.stop()
    tokens = sum(int(sample.completion_mask.sum()) for sample in samples)
    calls = sum(int(sample.metrics["tools/call_frequency"]) for sample in samples)
    failures = sum(sample.metrics["tools/failure_frequency"] for sample in samples)
    if failures:
        raise SystemExit(f"calls of TRL's tool failed: {samples[0].completion}")
    return Did(seconds, cpu, len({sample.group_id for sample in samples}), tokens, calls)


def run_trl_trainer(job: Job) -> Did:
    """The tools of ``GRPOTrainer``, without any training.

    It transfers no weights, which its NCCL could not on CPUs. It samples as in an evaluation,
    one trajectory for each prompt; as many prompts at once as it is given.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation import vllm_client, vllm_generation

    for module in (vllm_client, vllm_generation):  # only their own transfer uses vLLM
        module.is_vllm_available = lambda *args, **kwargs: True
    vllm_client.VLLMClient.init_communicator = lambda self, **kwargs: None
    vllm_generation.VLLMClient = vllm_client.VLLMClient
    vllm_generation.VLLMGeneration.sync_weights = lambda self: None
    prompts = [[{"role": "user", "content": prompt}] for prompt in job.prompts]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.folder, dtype="float32"),
        reward_funcs=[no_reward],
        args=GRPOConfig(
            output_dir=f"{Path(job.folder).parent}/trl",
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=job.url,
            max_completion_length=400,
            num_generations_eval=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        tools=[look_up],
    )
    trainer.model.eval()
    # Set for each batch by the method around the one that is called here, which would score it too.
    trainer._sync_tool_dicts = [{}] * AT_ONCE
    trainer._async_tool_dicts = [{look_up.__name__: look_up}] * AT_ONCE
    clock = Clock()
    masks, calls = [], 0.0
    for start in range(0, len(prompts), AT_ONCE):
        batch = prompts[start : start + AT_ONCE]
        masks += trainer._generate(batch)[2]
        calls += len(batch) * trainer._metrics["eval"]["tools/call_frequency"][-1]
    seconds, cpu = clock.read()
    if any(trainer._metrics["eval"]["tools/failure_frequency"]):
        raise SystemExit("calls of TRL's tool failed")
    return Did(seconds, cpu, len(masks), sum(map(sum, masks)), round(calls))


def _collected(worker: Any, count: int) -> list[Any]:
    """Samples of ``count`` trajectories."""
    samples: list[Any] = []
    while len({sample.group_id for sample in samples}) < count:
        worker.check_health(300.0)
        try:
            samples.append(worker.rollout_buffer.get(timeout=5.0))
        except queue.Empty:
            continue
    return samples


def once_through() -> type:
    """TRL's loop that asks for each row once; it would begin again until it is told to stop."""
    from trl.experimental.async_grpo.async_rollout_worker import _AsyncRolloutLoop

    global OnceThrough
    OnceThrough = type("OnceThrough", (_OnceThrough, _AsyncRolloutLoop), {"__module__": __name__})
    return OnceThrough


class _OnceThrough:
    def _repeat_iterator(self) -> Any:
        yield from enumerate(self.dataset)
        while True:
            yield len(self.dataset), {"prompt": []}

    async def _generate_one(self, prompt: Any, **kwargs: Any) -> Any:
        if prompt:
            return await super()._generate_one(prompt, **kwargs)
        await self._stop_event.wait()
        return [], [], [], 0, 0, None


# --- verifiers ---------------------------------------------------------------------------------


def run_verifiers(job: Job) -> Did:
    return asyncio.run(_verifiers(job))


async def _verifiers(job: Job) -> Did:
    from renderers.configs import Qwen3RendererConfig
    from rollout_peers_vf import close_session
    from verifiers.v1.clients import ModelContext, TrainClientConfig
    from verifiers.v1.types import SamplingConfig
    from verifiers.v1.utils.loaders import load_environment, resolve_env_config

    name = "rollout-peers-vf"
    agent = {"harness": {"id": name}, "runtime": {"type": "subprocess"}}
    config = {"taskset": {"id": name}, "agent": agent, "interception": {"multiplex": AT_ONCE}}
    environment = load_environment(resolve_env_config(config))
    client = TrainClientConfig(
        base_url=f"{job.url}/v1",
        api_key_var="NO_KEY",
        renderer=Qwen3RendererConfig(),
        renderer_model_name=job.folder,
    )
    context = ModelContext("policy", client, SamplingConfig(temperature=1.0, max_tokens=LIMIT))
    _read_token_ids()
    await _warm(client)
    at_once = asyncio.Semaphore(AT_ONCE)
    async with environment.serving():
        slots = [environment.slots(task)[0] for task in environment.taskset]
        clock = Clock()
        found = await asyncio.gather(*(environment.run_slot(s, context, at_once) for s in slots))
        seconds, cpu = clock.read()
    await close_session()
    failed = [error for e in found if not e.ok for error in (*e.errors, *e.traces[0].errors)]
    if failed:
        raise SystemExit(f"episodes of verifiers failed: {failed[0]}")
    traces = [episode.traces[0] for episode in found]
    tokens = sum(trace.num_output_tokens for trace in traces)
    calls = sum(1 for trace in traces for node in trace.nodes if node.message.role == "tool")
    return Did(seconds, cpu, len(found), tokens, calls)


def _read_token_ids() -> None:
    """Have renderers 0.1.12 understand vLLM 0.32, which gives ``token_id`` and no ``token``."""
    from renderers import client

    parse = client.parse_generate_response

    def parsed(raw: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = parse(raw)
        for entry in answer["choices"][0]["logprobs"]["content"]:
            entry["token"] = f"token_id:{entry['token_id']}"
        return answer

    client.parse_generate_response = parsed


async def _warm(client: Any) -> None:
    """Have the tokenizer of the client's renderer loaded."""
    from verifiers.v1.clients.train import ElasticRendererPool

    pool = ElasticRendererPool(
        client.renderer_model_name, client.renderer, multiplex=client.multiplex
    )
    async with pool.acquire():
        pass


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__" and json.loads(os.environ["ROLLOUT_JOB"])["system"] == "trl":
    once_through()
