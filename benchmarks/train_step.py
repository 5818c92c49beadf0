"""One policy update, ours against TRL's GRPOTrainer: tokens per second and peak memory.

    python benchmarks/train_step.py --peer-python VENV_WITH_TRL/bin/python
    python benchmarks/train_step.py --device cuda --shape qwen3-4b

Both systems get the same random weights, the same tokens, masks and advantages, the same
precision, the same rows per forward pass and the same optimizer. Each measurement is a
process of its own; the systems take turns, so that a noisy neighbour hits both. That
both did the same work is checked by the gradient norm, which must agree.

Tokens per second counts the real tokens of the batch (prompt, model and tool tokens, no
padding) over the wall-clock seconds of one update: forward, loss, backward, clipping,
optimizer step. Peak memory is the largest resident set during timed updates minus what the
process held before it had a model, so that the size of imports does not count.

Workloads (``--workload``):
    groups  siblings of one prompt with responses of different length, up to the shape's
            length, a quarter of it tool output: what a step of agent training looks like
    full    every row exactly as long as the length, no common prompt: nothing to pack and
            nothing to share, the least favourable case
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train_step_child import SHAPES, Job, Row, Shape, make_rows, save_model

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("train_step_child.py")


# --- comparing ---------------------------------------------------------------------------------


def measure(job: Job, python: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "0"}
    environment["TRANSFORMERS_VERBOSITY"] = "error"
    environment["PYTHONPATH"] = str(ROOT) if job.system == "ours" else ""
    done = subprocess.run(
        [python, CHILD, json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job.system} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(options: argparse.Namespace, shape_name: str, workload: str) -> dict[str, Any]:
    """Interleaved rounds of both systems on one workload."""
    shape = SHAPES[shape_name]
    count = sum(len(r.prompt) + len(r.completion) for r in make_rows(shape, workload))
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        save_model(shape, Path(folder))
        for _ in range(options.rounds):
            for system, python in (("ours", sys.executable), ("trl", options.peer_python)):
                job = Job(
                    system,
                    folder,
                    shape_name,
                    workload,
                    options.precision,
                    options.device,
                    options.threads,
                    options.updates,
                    options.checkpointing,
                )
                runs[system].append(measure(job, python))
    summary = {system: summarise(results, count) for system, results in runs.items()}
    ours, trl = summary["ours"], summary["trl"]
    difference = abs(ours["grad_norm"] - trl["grad_norm"]) / trl["grad_norm"]
    if difference > (1e-3 if options.precision == "float32" else 5e-2):
        raise SystemExit(
            f"the systems did different work: gradient norms differ by {difference:.1%}"
        )
    return {
        "shape": shape_name,
        "workload": workload,
        "precision": options.precision,
        "checkpointing": options.checkpointing,
        "tokens": count,
        **summary,
        "speed_ratio": ours["tokens_per_second"] / trl["tokens_per_second"],
        "memory_ratio": ours["peak_gib"] / trl["peak_gib"],
        "grad_norm_difference": difference,
    }


def summarise(results: list[dict[str, Any]], count: int) -> dict[str, float]:
    seconds = [s for result in results for s in result["seconds"][1:]]
    cpu = [s for result in results for s in result["cpu_seconds"][1:]]
    return {
        "seconds_per_update": statistics.median(seconds),
        "cpu_seconds_per_update": statistics.median(cpu),
        "tokens_per_second": count / statistics.median(seconds),
        "peak_gib": statistics.median(r["peak_bytes"] for r in results) / 2**30,
        "grad_norm": results[0]["grad_norm"],
    }


# --- one GPU, against the ceiling of its matrix products ---------------------------------------


def matmul_ceiling(device: str) -> float:
    """Measured floating-point operations per second of large bfloat16 matrix products."""
    import torch

    best = 0.0
    for size in (4096, 8192):
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        for _ in range(5):
            a @ b
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(30):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 30 * 2 * size**3 / (time.perf_counter() - started))
    return best


def useful_operations(shape: Shape, rows: list[Row]) -> float:
    """Forward and backward (three times the forward) without padding, without repeats of a
    prompt shared by siblings, and without anything that is recomputed to save memory."""
    d, heads = shape.hidden, shape.heads * shape.head_dim
    linear = d * heads * 2 + d * shape.kv_heads * shape.head_dim * 2 + 3 * d * shape.feed_forward
    total, prompts = 0.0, set()
    for row in rows:
        length = len(row.prompt) + len(row.completion)
        known = tuple(row.prompt) in prompts
        prompts.add(tuple(row.prompt))
        computed = length - (len(row.prompt) if known else 0)
        pairs = length**2 / 2 - (len(row.prompt) ** 2 / 2 if known else 0)
        total += shape.layers * (2 * linear * computed + 4 * heads * pairs)
        total += 2 * d * shape.vocabulary * sum(row.written)
    return 3 * total


def gpu_share(options: argparse.Namespace, shape_name: str, workload: str) -> dict[str, Any]:
    """Tokens per second on one GPU and the share of the matrix-product ceiling it amounts to."""
    shape = SHAPES[shape_name]
    ceiling = matmul_ceiling("cuda")
    import torch

    torch.cuda.empty_cache()
    job = Job(
        "ours",
        "",
        shape_name,
        workload,
        "bfloat16",
        "cuda",
        options.threads,
        options.updates,
        options.checkpointing,
    )
    rows = make_rows(shape, workload)
    count = sum(len(r.prompt) + len(r.completion) for r in rows)
    ours = summarise([measure(job, sys.executable)], count)
    achieved = useful_operations(shape, rows) / ours["seconds_per_update"]
    return {
        "shape": shape_name,
        "workload": workload,
        "device": torch.cuda.get_device_name(),
        "tokens": count,
        "ours": ours,
        "ceiling_tflops": ceiling / 1e12,
        "achieved_tflops": achieved / 1e12,
        "share_of_ceiling": achieved / ceiling,
    }


# --- command line ------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    title = f"{result['shape']}, {result['workload']}, {result['tokens']} tokens an update"
    if "share_of_ceiling" in result:
        print(
            f"{title}: {result['ours']['tokens_per_second']:.0f} tokens/s, "
            f"{result['achieved_tflops']:.0f} of {result['ceiling_tflops']:.0f} TFLOP/s "
            f"({result['share_of_ceiling']:.1%}), peak {result['ours']['peak_gib']:.1f} GiB"
        )
        return
    recompute = ", gradient checkpointing" if result["checkpointing"] else ""
    print(f"{title}, {result['precision']}{recompute}")
    print(f"  {'':6}{'tokens/s':>10}{'s/update':>10}{'CPU s':>10}{'peak GiB':>10}")
    for system in ("ours", "trl"):
        row = result[system]
        print(
            f"  {system:6}{row['tokens_per_second']:10.1f}{row['seconds_per_update']:10.2f}"
            f"{row['cpu_seconds_per_update']:10.2f}{row['peak_gib']:10.2f}"
        )
    print(f"  ratio {result['speed_ratio']:10.2f}{'':20}{result['memory_ratio']:10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", help="python of an environment with trl==1.16.0")
    parser.add_argument("--shape", choices=[*SHAPES], action="append")
    parser.add_argument("--workload", choices=["groups", "full"], action="append")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--checkpointing", action="store_true", help="gradient checkpointing in both"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each system")
    parser.add_argument("--updates", type=int, default=3, help="timed updates of each process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/train_step.json")
    options = parser.parse_args()
    if options.device == "cpu" and not options.peer_python:
        parser.error("--peer-python is needed: python -m venv V; V/bin/pip install trl==1.16.0")
    shapes = options.shape or (
        ["qwen3-4b"] if options.device == "cuda" else ["tiny", "smollm2-135m"]
    )
    results = []
    for shape in shapes:
        for workload in options.workload or ["groups", "full"]:
            run = gpu_share if options.device == "cuda" else compare
            results.append(run(options, shape, workload))
            show(results[-1])
    record = {"command": sys.argv[1:], "threads": options.threads, "results": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
