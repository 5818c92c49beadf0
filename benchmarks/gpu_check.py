"""What one GPU does with this project: the stages that ``scripts/gpu_check.sh`` runs.

    python benchmarks/gpu_check.py ceilings --output DIR
    python benchmarks/gpu_check.py update   --output DIR [--profile short] [--rehearse]
    python benchmarks/gpu_check.py rollout  --output DIR
    python benchmarks/gpu_check.py step     --output DIR

Each stage writes ``DIR/STAGE.json`` anew whenever it has one more figure, so that a stage
which is cut off leaves what it had. ``--rehearse`` takes tiny shapes and, without a GPU, the
CPU: the same code, for continuous integration.

Figures: *tokens/s* of an update counts the real tokens of its batch (prompt, model and tool
tokens, no padding) over the wall-clock time of forward, loss, backward, clipping and optimizer
step. *Share of the ceiling* is the arithmetic that the update cannot do without (nothing
recomputed, prompts of a group once) over the measured rate of a large bfloat16 matrix
product. *Engine tokens/s* counts sampled tokens over the wall-clock time of all turns.
*Agreement* is the absolute difference of the engine's log-probability of a sampled token
to the trainer's, of the very same weights.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from train_step import useful_operations
from train_step_child import SHAPES, Shape, build_model, make_rows, to_batch

MORE_SHAPES = {
    "qwen3-4b, half the layers": replace(SHAPES["qwen3-4b"], layers=18),
    "qwen3-0.6b": Shape(151936, 1024, 3072, 28, 16, 8, 128, 4096, 512, 2, 8, 4, "qwen3"),
}
TINY = replace(SHAPES["tiny"], groups=2, siblings=4)


@dataclass(frozen=True)
class Stage:
    """Where results go and what is asked for."""

    name: str
    folder: Path
    device: str
    short: bool
    rehearse: bool

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.json"


class Results:
    """The figures of a stage, on disk as soon as they are known."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._rows: list[dict[str, Any]] = []
        self._write()

    def add(self, **row: Any) -> None:
        self._rows.append(row)
        self._write()
        print(json.dumps(row), flush=True)

    @property
    def failed(self) -> bool:
        return any("error" in row for row in self._rows)

    @contextmanager
    def attempt(self, **row: Any) -> Iterator[dict[str, Any]]:
        """Fill in a row; what fails is a row with its error and does not end the stage."""
        started = time.perf_counter()
        try:
            yield row
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:600]
        row["stage_seconds"] = round(time.perf_counter() - started, 2)
        self.add(**row)
        gc.collect()
        if self._stage.device == "cuda":
            torch.cuda.empty_cache()

    def _write(self) -> None:
        draft = self._stage.file.with_suffix(".part")
        draft.write_text(json.dumps({"device": self._stage.device, "rows": self._rows}, indent=1))
        draft.replace(self._stage.file)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device: str, function: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return seconds


# --- ceilings --------------------------------------------------------------------------------


def ceilings(stage: Stage, results: Results) -> None:
    """A large copy (bytes read and written) and a large bfloat16 matrix product."""
    size = 1 << (31 if stage.device == "cuda" else 24)
    with results.attempt(what="copy") as row:
        source = torch.ones(size, dtype=torch.uint8, device=stage.device)
        target = torch.empty_like(source)
        best = min(timed(stage.device, partial(target.copy_, source), 10))
        row["bytes_per_second"] = 2 * size / best
    with results.attempt(what="matmul_bf16") as row:
        row["flops"] = matmul_rate(stage.device)
    if stage.device == "cuda":
        with results.attempt(what="attention") as row:
            row["flops"] = attention_rate()


def attention_rate() -> float:
    """Operations per second of ragged causal attention of the shape of Qwen3-4B, both passes."""
    from agent_r1.models.attention import ragged_attention

    lengths = [4096, 3000, 2048, 1500, 900]
    cu = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    leaves = [
        torch.randn(sum(lengths), heads, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for heads in (32, 8, 8)
    ]
    weight = torch.randn_like(leaves[0])

    def run() -> Any:
        out = ragged_attention(*leaves, cu, cu, lengths[0], lengths[0], 128**-0.5)
        return torch.autograd.grad(out, leaves, weight)

    return 3.5 * sum(2 * n**2 * 128 * 32 for n in lengths) / min(timed("cuda", run, 10))


def matmul_rate(device: str) -> float:
    """Floating-point operations per second, the median of several runs."""
    n = 8192 if device == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = sorted(timed(device, lambda: a @ b, 20))
    return float(2 * n**3 / seconds[len(seconds) // 2])


# --- one policy update -----------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to make an update fit."""

    name: str
    shape: str
    lora_rank: int = 0
    optimizer: str = "adamw"
    offload: bool = False
    checkpointing: bool = True
    tokens: int = 16384
    groups: int = 2
    quick: bool = False
    """Part of the short profile."""


VARIANTS = [
    Variant("LoRA, rank 32", "qwen3-4b", lora_rank=32),
    Variant(
        "LoRA, rank 32",
        "qwen3-4b",
        lora_rank=32,
        checkpointing=False,
        tokens=8192,
        quick=True,
    ),
    Variant(
        "all weights", "qwen3-4b, half the layers", checkpointing=False, tokens=8192, quick=True
    ),
    Variant("all weights", "qwen3-0.6b", checkpointing=False),
    Variant("all weights, states offloaded", "qwen3-4b", offload=True),
    Variant("all weights, 8-bit states", "qwen3-4b", optimizer="adamw_8bit"),
]


def update(stage: Stage, results: Results) -> None:
    """One policy update: plain policy gradient over groups with tool output in them."""
    ceiling = matmul_rate(stage.device)
    wanted = [v for v in VARIANTS if v.quick or not stage.short]
    for variant in wanted:
        if variant.optimizer == "adamw_8bit" and find_spec("torchao") is None:
            skipped = "the package torchao is not installed"
            results.add(variant=variant.name, shape=variant.shape, skipped=skipped)
            continue
        with results.attempt(variant=variant.name, shape=variant.shape) as row:
            row |= measure_update(stage, variant, ceiling)


def shape_of(stage: Stage, name: str) -> Shape:
    return TINY if stage.rehearse else (SHAPES | MORE_SHAPES)[name]


def measure_update(stage: Stage, variant: Variant, ceiling: float) -> dict[str, Any]:
    from agent_r1.config.policy import ActorConfig, OptimConfig
    from agent_r1.trainer.worker import LocalWorker

    shape = shape_of(stage, variant.shape)
    shape = replace(shape, groups=min(shape.groups, variant.groups))
    model = packed_model(shape, stage.device, variant.lora_rank, variant.checkpointing)
    rows = make_rows(shape, "groups")
    batch = to_batch(rows)
    optim = OptimConfig(name=variant.optimizer, lr=1e-6, weight_decay=0.0, offload=variant.offload)
    config = ActorConfig(optim=optim, ppo_max_token_len_per_gpu=variant.tokens)
    worker = LocalWorker(model, config, total_steps=100)
    advantages = batch.reward[:, None] * batch.loss_mask
    last: dict[str, float] = {}

    def run() -> None:
        last.update(worker.update_policy(batch, None, advantages))

    reset_peak(stage.device)
    seconds = timed(stage.device, run, 1 if stage.short else 2)
    if stage.device == "cuda" and variant.quick:
        profile(stage, "update_adapters" if variant.lora_rank else "update", run)
    count = sum(len(r.prompt) + len(r.completion) for r in rows)
    operations = useful_operations(shape, rows) * (2 / 3 if variant.lora_rank else 1)
    best = min(seconds)
    return {
        "tokens": count,
        "token_budget": variant.tokens,
        "seconds": seconds,
        "tokens_per_second": count / best,
        "achieved_flops": operations / best,
        "ceiling_flops": ceiling,
        "share_of_ceiling": operations / best / ceiling,
        "peak_bytes": peak(stage.device),
        "planned_bytes": planned(shape, variant, batch, stage.device),
        "grad_norm": last["actor/grad_norm"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def planned(shape: Shape, variant: Variant, batch: Any, device: str) -> int:
    """What the memory plan says of this update, for the largest micro-batch that there was."""
    from agent_r1.config.load import load_config
    from agent_r1.trainer import memory

    most = max(int(batch.select(r).lengths.sum()) for r in batch.micro_batches(variant.tokens))
    settings = [
        f"actor_rollout_ref.model.lora_rank={variant.lora_rank}",
        f"actor_rollout_ref.model.enable_gradient_checkpointing={variant.checkpointing}",
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={most}",
        f"actor_rollout_ref.actor.optim.name={variant.optimizer}",
        f"actor_rollout_ref.actor.optim.offload={variant.offload}",
    ]
    sizes = memory.network_of(build_model(shape, "float32", "meta"), variant.lora_rank)
    plan = memory.plan_memory(load_config(None, settings), device=device, policy=sizes)
    return plan.device_need("policy update") - memory.CONTEXT_BYTES[device]


def packed_model(shape: Shape, device: str, lora_rank: int = 0, checkpointing: bool = False) -> Any:
    from agent_r1.models.load import enable_packing, prepare_training
    from agent_r1.models.lora import add_lora

    torch.manual_seed(0)
    dtype = "bfloat16" if device == "cuda" else "float32"
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = build_model(shape, dtype, device).eval()
    finally:
        torch.set_default_dtype(default)
    enable_packing(model)
    prepare_training(model, gradient_checkpointing=checkpointing)
    return add_lora(model, rank=lora_rank, alpha=2 * lora_rank) if lora_rank else model


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def profile(stage: Stage, what: str, run: Callable[[], None]) -> None:
    """Where the card's time goes: a table of kernels, longest first."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    kernels: dict[str, list[float]] = {}
    for event in profiler.events() or ():
        entry = kernels.setdefault(event.name, [0.0, 0])
        entry[0] += event.device_time_total / 1e6
        entry[1] += 1
    lines = [f"wall clock {seconds:.3f} s, card {sum(k[0] for k in kernels.values()):.3f} s"]
    for name, (total, calls) in sorted(kernels.items(), key=lambda k: -k[1][0])[:45]:
        lines.append(f"{total:9.4f} s {calls:7d} x {name[:150]}")
    (stage.folder / f"profile_{what}.txt").write_text("\n".join(lines) + "\n")


# --- rollouts --------------------------------------------------------------------------------

PROMPT, TURN, TOOL = 256, 128, 64
"""Tokens of a prompt, of each of two turns, and of the tool output between them."""


def rollout(stage: Stage, results: Results) -> None:
    """Two turns with tool output between them, for several shapes and numbers of sequences."""
    plan = {"qwen3-4b": (64, 256, 1), "smollm2-135m": (64, 256, 1), "tiny": (64, 256, 1)}
    if stage.short:
        plan = {"qwen3-4b": (64, 256), "smollm2-135m": (64, 256)}
    if stage.rehearse:
        plan = {"tiny": (1, 8)}
    for name, counts in plan.items():
        model = packed_model(shape_of(stage, name), stage.device)
        for count in counts:
            # Launched one by one, larger models take half a minute and say the same.
            for graphs in (True, False) if (name, count) == ("tiny", 64) else (True,):
                with results.attempt(shape=name, sequences=count, graphs=graphs) as row:
                    row |= measure_rollout(stage, model, count, graphs)
        del model


def measure_rollout(stage: Stage, model: Any, count: int, graphs: bool) -> dict[str, Any]:
    from agent_r1.rollout.engines.embedded import EmbeddedEngine

    prompt, turn, tool = (16, 8, 4) if stage.rehearse else (PROMPT, TURN, TOOL)
    length = prompt + 2 * turn + tool + 1
    engine = EmbeddedEngine(
        model,
        WORDLESS,
        max_model_len=length,
        max_slots=count,
        eos_ids=(),
        graphs=graphs,
        free_when_idle=False,
    )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    runs: list[float] = []
    episodes: list[Any] = []

    async def everything() -> None:
        for _ in range(3):
            await engine.load_weights(None, 0)
            started = time.perf_counter()
            episodes[:] = await wave(engine, count, vocabulary, (prompt, turn, tool))
            runs.append(time.perf_counter() - started)

    async def once() -> None:
        await wave(engine, count, vocabulary, (prompt, turn // 4, tool))

    reset_peak(stage.device)
    asyncio.run(everything())
    steps = engine.stats().decode_steps
    if stage.device == "cuda" and graphs and count == 64 and model.config.hidden_size > 2000:
        profile(stage, "rollout", lambda: asyncio.run(once()))
    difference = agreement(stage, model, episodes)
    asyncio.run(engine.close())
    return {
        "seconds": runs,
        "tokens_per_second": 2 * turn * count / min(runs),
        "first_tokens_per_second": 2 * turn * count / runs[0],
        "seconds_per_step": min(runs) * len(runs) / steps,
        "peak_bytes": peak(stage.device),
        **difference,
    }


async def wave(engine: Any, count: int, vocabulary: int, sizes: tuple[int, int, int]) -> list[Any]:
    """All sequences at once; returns tokens, mask and log-probabilities of each."""
    from agent_r1.types import SamplingParams

    prompt, turn, tool = sizes

    async def one(index: int) -> Any:
        name = f"r{index}"
        draw = torch.Generator().manual_seed(index // 8)  # siblings of eight share a prompt
        tokens = torch.randint(3, vocabulary, (prompt,), generator=draw).tolist()
        mask, logprobs = [0] * prompt, [0.0] * prompt
        for number in range(2):
            params = SamplingParams(turn, seed=index * 2 + number)
            done = await engine.generate(tokens, params, name)
            tokens = [*tokens, *done.token_ids]
            mask += [1] * len(done.token_ids)
            logprobs += done.logprobs
            if number == 0:
                seen = torch.randint(3, vocabulary, (tool,), generator=draw).tolist()
                tokens, mask, logprobs = (
                    [*tokens, *seen],
                    mask + [0] * tool,
                    logprobs + [0.0] * tool,
                )
        engine.release(name)
        return tokens, mask, logprobs

    engine.open([f"r{i}" for i in range(count)])
    return list(await asyncio.gather(*(one(i) for i in range(count))))


@torch.no_grad()
def agreement(stage: Stage, model: Any, episodes: list[Any]) -> dict[str, float]:
    """Mean and largest difference of log-probabilities, engine against trainer."""
    from agent_r1.models.logprobs import token_logprobs

    chosen = episodes[:32]
    ids = torch.tensor([tokens for tokens, _, _ in chosen], device=stage.device)
    mask = torch.tensor([m for _, m, _ in chosen], dtype=torch.bool, device=stage.device)
    engine = torch.tensor([p for _, _, p in chosen], device=stage.device)
    lengths = torch.full((len(chosen),), ids.shape[1], device=stage.device)
    found = token_logprobs(model, ids, lengths, mask=mask).logprobs
    off = (found - engine).abs()[mask]
    return {"logprob_diff_mean": float(off.mean()), "logprob_diff_max": float(off.max())}


class _Wordless:
    """A tokenizer for engines whose requests have no stop strings."""

    eos_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {}


WORDLESS = _Wordless()


# --- one whole step --------------------------------------------------------------------------


REWARD = """
def last_character(trajectory):
    return float(ord(trajectory.final_text[-1:] or "a") % 2)
"""
"""A reward that differs between the samples of a random model, so that there is a gradient."""


def step(stage: Stage, results: Results) -> None:
    """Two steps of the quick start's task with a random model of a larger shape."""
    from agent_r1.recipes.tiny import TinyShape, build_tiny_model

    folder = Path(tempfile.mkdtemp(prefix="agent-r1-step-"))
    large = TinyShape(hidden=1024, layers=28, heads=16, feed_forward=3072, context=512)
    build_tiny_model(folder / "model", shape=TinyShape() if stage.rehearse else large)
    (folder / "reward.py").write_text(REWARD)
    with results.attempt(shape="0.7 M" if stage.rehearse else "0.4 B, small vocabulary") as row:
        prompts, n, length = (4, 2, 32) if stage.rehearse else (16, 16, 256)
        settings = [
            f"actor_rollout_ref.model.path={folder / 'model'}",
            f"actor_rollout_ref.rollout.n={n}",
            f"data.train_batch_size={prompts}",
            "data.train_files=generator:arithmetic",
            "data.train_max_samples=256",
            f"data.max_response_length={length}",
            "tool.env=retool",
            "tool.tools=[python]",
            f"reward.name={folder / 'reward.py'}:last_character",
            "trainer.total_training_steps=2",
            "trainer.test_freq=-1",
            "trainer.save_freq=-1",
            f"trainer.default_local_dir={folder / 'run'}",
        ]
        command = [sys.executable, "-m", "agent_r1", "train", *settings]
        if subprocess.run(command, check=False).returncode:  # what it prints is the stage's log
            raise RuntimeError("the run failed")
        lines = [json.loads(s) for s in (folder / "run/metrics.jsonl").read_text().splitlines()]
        keys = ("timing_s/", "perf/", "training/logprob", "actor/grad_norm")
        row["steps"] = [{k: v for k, v in m.items() if k.startswith(keys)} for m in lines]


# --- command line ----------------------------------------------------------------------------

STAGES = {"ceilings": ceilings, "update": update, "rollout": rollout, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=[*STAGES])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--profile", choices=["full", "short"], default="full")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() and not options.rehearse else "cpu"
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    short = options.profile == "short"
    stage = Stage(options.stage, options.output, device, short, options.rehearse)
    results = Results(stage)
    STAGES[options.stage](stage, results)
    raise SystemExit(1 if results.failed else 0)


if __name__ == "__main__":
    main()
