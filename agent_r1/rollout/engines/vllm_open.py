"""From settings to vLLM servers: the command line, the environment, the fleet."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.errors import ConfigError
from agent_r1.rollout.engines.vllm import Replica, VLLMEngine
from agent_r1.rollout.engines.vllm_plugin import TRANSPORT
from agent_r1.rollout.engines.vllm_process import VLLMProcess

_BATCHED_TOKENS = 2048


def open_vllm(
    rollout: RolloutConfig,
    model: Path,
    *,
    max_model_len: int,
    dtype: str,
    device: str,
    log_folder: Path,
    awaits: bool = False,
) -> VLLMEngine:
    """The engine of these settings. Nothing is started before it is first asked.

    ``awaits``: servers of ``rollout.endpoints`` may still be starting then.
    """
    settings = rollout.vllm
    if rollout.endpoints:
        replicas = [Replica(None, url, settings.timeout_s) for url in rollout.endpoints]
    else:
        if not model.is_dir():
            raise ConfigError(
                f"rollout.name=vllm reads a model folder, and {model} is none; download it first"
            )
        _check_window(model, max_model_len, settings.env)
        words = command(rollout, model, max_model_len, dtype, device)
        environ = environment(settings, device)
        replicas = [
            Replica(
                VLLMProcess(words, environ, log_folder / f"vllm-{number}.log"),
                "",
                settings.timeout_s,
            )
            for number in range(settings.replicas)
        ]
    return VLLMEngine(
        replicas,
        max_model_len=max_model_len,
        start_timeout_s=settings.start_timeout_s,
        sleeps=settings.sleep,
        awaits=awaits,
    )


def command(
    rollout: RolloutConfig,
    model: Path,
    max_model_len: int,
    dtype: str,
    device: str,
) -> Sequence[str]:
    """``vllm serve`` but for host and port.

    On a CPU prompts are computed whole: vLLM takes a seeded draw back where it computed only
    a piece of a prompt, which torch's generator for CPUs refuses, and the engine dies of it.
    """
    settings = rollout.vllm
    options = {
        "--dtype": dtype,
        "--max-model-len": str(max_model_len),
        "--max-num-seqs": str(rollout.max_num_seqs),
        "--gpu-memory-utilization": str(rollout.gpu_memory_utilization),
        "--tensor-parallel-size": str(settings.tensor_parallel_size),
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--weight-transfer-config": f'{{"backend": "{TRANSPORT}"}}',
    }
    flags = ["--enable-scale-out", "--enable-prefix-caching", "--disable-uvicorn-access-log"]
    if device == "cpu":
        flags.append("--no-enable-chunked-prefill")
        options["--max-num-batched-tokens"] = str(max(max_model_len, _BATCHED_TOKENS))
    if settings.quantization:
        options["--quantization"] = settings.quantization
    if settings.enforce_eager:
        flags.append("--enforce-eager")
    if settings.sleep:
        flags.append("--enable-sleep-mode")
    python = settings.python or sys.executable
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += [word for pair in options.items() for word in pair]
    return [*words, *flags, *settings.args]


def _check_window(model: Path, max_model_len: int, env: Mapping[str, str]) -> None:
    """Say at once what vLLM would say after it has started: the model has fewer positions."""
    if {**os.environ, **env}.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0"):
        return
    try:
        found = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # vLLM names what is wrong with it
    found = found.get("text_config", found)
    positions = found.get("max_position_embeddings")
    scaled = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if isinstance(positions, int) and "factor" not in scaled and max_model_len > positions:
        raise ConfigError(
            f"the context window of {max_model_len} tokens (data.max_prompt_length + "
            f"data.max_response_length, or actor_rollout_ref.rollout.max_model_len) is above the "
            f"{positions} positions of {model}; lower it, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 "
            "in actor_rollout_ref.rollout.vllm.env"
        )


def environment(settings: VLLMConfig, device: str) -> Mapping[str, str]:
    """That of this process, with the routes for reinforcement learning switched on."""
    added = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if device == "cpu":
        added |= {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    found = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH",)}
    return {**added, **found, **settings.env}
