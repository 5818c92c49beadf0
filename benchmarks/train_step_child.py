"""The work that ``train_step.py`` measures, and the process that does it.

``python train_step_child.py JOB`` (JSON) runs one system on one workload and prints the
measurement as JSON. It runs in the environment of either system, so that it imports each
only where it is used.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    prompt: int
    groups: int
    siblings: int
    micro_rows: int
    architecture: str
    tied: bool = True


SHAPES = {
    "tiny": Shape(512, 128, 384, 3, 4, 4, 32, 192, 48, 8, 16, 64, "qwen3"),
    "smollm2-135m": Shape(49152, 576, 1536, 30, 9, 3, 64, 1024, 256, 1, 4, 4, "llama"),
    "small": Shape(8192, 384, 1152, 6, 6, 6, 64, 512, 128, 4, 4, 4, "qwen3"),
    "qwen3-4b": Shape(151936, 2560, 9728, 36, 32, 8, 128, 4096, 512, 8, 8, 2, "qwen3"),
}


@dataclass(frozen=True)
class Job:
    """What a child process is told, as JSON."""

    system: str
    folder: str
    shape: str
    workload: str
    precision: str
    device: str
    threads: int
    updates: int
    checkpointing: bool


@dataclass(frozen=True)
class Row:
    group: int
    prompt: list[int]
    completion: list[int]
    written: list[int]  # 1 where the model wrote the token, 0 for tool output
    advantage: float


# --- the same data for everybody -----------------------------------------------------------


def make_rows(shape: Shape, workload: str) -> list[Row]:
    draw = random.Random(0)
    rows = []
    for group in range(shape.groups):
        shared = tokens(draw, shape, shape.prompt)
        for _ in range(shape.siblings):
            prompt = shared if workload == "groups" else tokens(draw, shape, shape.prompt)
            longest = shape.length - shape.prompt
            size = draw.randint(longest // 2, longest) if workload == "groups" else longest
            tool = size // 4
            start = (size - tool) // 2
            written = [0 if start <= i < start + tool else 1 for i in range(size)]
            rows.append(Row(group, prompt, tokens(draw, shape, size), written, draw.gauss(0, 1)))
    return rows


def tokens(draw: random.Random, shape: Shape, count: int) -> list[int]:
    return [draw.randrange(3, shape.vocabulary) for _ in range(count)]


def save_model(shape: Shape, folder: Path) -> None:
    """Random weights and a tokenizer that both systems accept."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    build_model(shape, "float32", "cpu").save_pretrained(folder)
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    words |= {f"w{i}": i for i in range(3, shape.vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)


def build_model(shape: Shape, dtype: str, device: str) -> Any:
    import torch
    import transformers

    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": max(8192, shape.length),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = (
        transformers.Qwen3Config(**common)
        if shape.architecture == "qwen3"
        else transformers.LlamaConfig(**common)
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.to(getattr(torch, dtype))


# --- measuring in a child process ------------------------------------------------------------


class Meter:
    """Seconds of each update after the first, and the peak of memory over them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = 0
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def no_model_yet(self) -> None:
        self._before = resident("VmRSS")

    def warm(self) -> None:
        """The first update is over: allocators and optimizer state exist."""
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def start(self) -> None:
        self._synchronise()
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self._synchronise()
        self.seconds.append(time.perf_counter() - self._started[0])
        self.cpu_seconds.append(time.process_time() - self._started[1])

    def result(self, grad_norm: float) -> dict[str, Any]:
        if self._device == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resident("VmHWM") - self._before
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_bytes": peak,
            "imports_bytes": self._before,
            "grad_norm": grad_norm,
        }

    def _synchronise(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_child(job: Job) -> dict[str, Any]:
    import torch

    torch.set_num_threads(job.threads)
    meter = Meter(job.device)
    return run_trl(job, meter) if job.system == "trl" else run_ours(job, meter)


def run_ours(job: Job, meter: Meter) -> dict[str, Any]:
    import torch

    from agent_r1.config.policy import ActorConfig, OptimConfig
    from agent_r1.models.load import enable_packing, load_model, prepare_training
    from agent_r1.trainer.worker import LocalWorker

    shape = SHAPES[job.shape]
    meter.no_model_yet()
    if job.folder:
        model = load_model(
            job.folder, "float32", job.device, gradient_checkpointing=job.checkpointing
        )
    else:
        model = build_model(shape, "bfloat16", job.device).eval()
        enable_packing(model)
        prepare_training(model, gradient_checkpointing=job.checkpointing)
    batch = to_batch(make_rows(shape, job.workload))
    advantages = batch.reward[:, None] * batch.loss_mask
    config = ActorConfig(
        optim=OptimConfig(lr=1e-6, weight_decay=0.0),
        ppo_max_token_len_per_gpu=shape.micro_rows * shape.length,
        autocast="bfloat16" if job.precision == "bfloat16" and job.folder else "off",
    )
    worker = LocalWorker(model, config, total_steps=100)
    norm = 0.0
    for update in range(job.updates + 1):
        meter.start()
        metrics = worker.update_policy(batch, None, advantages)
        meter.stop()
        if update == 0:
            norm = metrics["actor/grad_norm"]
            meter.warm()
    assert torch.isfinite(next(model.parameters())).all()
    return meter.result(norm)


def to_batch(rows: list[Row]) -> Any:
    from agent_r1.data.batch import Batch
    from agent_r1.types import Completion, Finish, Outcome, Reward, Task, Trajectory, Turn

    made = []
    for index, row in enumerate(rows):
        turns, context, start = [], tuple(row.prompt), 0
        while start < len(row.completion):
            stop = start
            while stop < len(row.completion) and row.written[stop]:
                stop += 1
            after = stop
            while after < len(row.completion) and not row.written[after]:
                after += 1
            action = tuple(row.completion[start:stop])
            seen = tuple(row.completion[stop:after])
            completion = Completion(action, (0.0,) * len(action), Finish.STOP)
            turns.append(Turn(context, completion, "", seen))
            context, start = context + action + seen, after
        task = Task(str(row.group), "")
        reward = Reward(row.advantage)
        made.append(Trajectory(task, str(row.group), index, tuple(turns), Outcome.FINISHED, reward))
    return Batch.from_trajectories(made, 0)


def run_trl(job: Job, meter: Meter) -> dict[str, Any]:
    os.environ["WANDB_DISABLED"] = "true"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    shape = SHAPES[job.shape]
    rows = make_rows(shape, job.workload)
    fixed = trl_inputs(own_rows(rows), job.device)
    # The loss divides by the tokens of all processes.
    written = float(sum(sum(row.written) for row in rows))
    fixed["num_items_in_batch"] = torch.tensor(written, device=job.device)
    rows = own_rows(rows)

    class Fixed(GRPOTrainer):  # type: ignore[misc]
        """Trains on given completions instead of sampling some."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            return dict(fixed)

    class Timer(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            meter.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            meter.stop()
            if state.global_step == 1:
                meter.warm()

    meter.no_model_yet()
    with tempfile.TemporaryDirectory() as output:
        model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
        trainer = Fixed(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(job.folder),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=GRPOConfig(output_dir=output, **trl_settings(job, shape, len(rows))),
            train_dataset=Dataset.from_list([{"prompt": "w3"}] * len(rows) * (job.updates + 1)),
            callbacks=[Timer()],
        )
        trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return meter.result(float(logged[0]))


def own_rows(rows: list[Row]) -> list[Row]:
    """This process's share, in the order of lengths so that shares are about as long."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count == 1:
        return rows
    return sorted(rows, key=lambda row: len(row.completion))[rank::count]


def trl_settings(job: Job, shape: Shape, rows: int) -> dict[str, Any]:
    """What makes GRPOTrainer do one optimizer step of plain GRPO per update, and no more."""
    return {
        "per_device_train_batch_size": min(rows, shape.micro_rows),
        "gradient_accumulation_steps": max(1, rows // shape.micro_rows),
        "num_generations": shape.siblings,
        "max_steps": job.updates + 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": job.device == "cpu",
        "bf16": job.precision == "bfloat16",
        "beta": 0.0,
        "temperature": 1.0,
        "gradient_checkpointing": job.checkpointing,
        "save_strategy": "no",
        "disable_tqdm": True,
        "shuffle_dataset": False,
    }


def trl_inputs(rows: list[Row], device: str) -> dict[str, Any]:
    """The tensors that GRPOTrainer makes of its own completions."""
    import torch

    width = max(len(row.completion) for row in rows)

    def padded(values: list[list[int]]) -> Any:
        return torch.tensor([v + [0] * (width - len(v)) for v in values], device=device)

    written = sum(sum(row.written) for row in rows)
    prompts = torch.tensor([row.prompt for row in rows], device=device)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded([row.completion for row in rows]),
        "completion_mask": padded([[1] * len(row.completion) for row in rows]),
        "tool_mask": padded([row.written for row in rows]),
        "advantages": torch.tensor([row.advantage for row in rows], device=device),
        "num_items_in_batch": torch.tensor(float(written), device=device),
    }


if __name__ == "__main__":
    print(json.dumps(run_child(Job(**json.loads(sys.argv[1])))))
