"""`agent-r1 eval --server` against vLLM's own server: VLLM_PYTHON=.../bin/python pytest -m vllm."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from agent_r1.cli import cli
from agent_r1.monitor.records import load_trajectories
from agent_r1.testing import byte_tokenizer, tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ENVIRONMENT = """
from agent_r1.tool.base import BaseToolEnv

class Nods(BaseToolEnv):
    stop_strings = ("Q", "Y", "{", "6", "</")

    def step(self, raw_response):
        return "\\n<interpreter>yes</interpreter>\\n", [True], True
"""
TASKS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("policy")
    tokenizer = byte_tokenizer()
    model = tiny_model(
        len(tokenizer), hidden_size=64, heads=2, kv_heads=1, tie_word_embeddings=False
    )
    for parameter in model.parameters():  # otherwise it repeats itself
        if parameter.dim() > 1:
            parameter.data *= 8
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}"}],
            "reward_model": {"ground_truth": "7"},
            "data_source": "a",
        }
        for i in range(TASKS)
    ]
    (root / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "environment.py").write_text(ENVIRONMENT)
    return root


@contextmanager
def started(folder):
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("VLLM_PYTHON names no interpreter that has vLLM")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    words += ["--model", str(folder / "model"), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--dtype", "float32", "--max-model-len", "512", "--gpu-memory-utilization", "0.1"]
    environ = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with open(folder / "vllm.log", "w") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, env=environ)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert server.poll() is None, (folder / "vllm.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield f"{url}/v1"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def url(folder):
    with started(folder) as address:
        yield address


def evaluated(folder, out, *words):
    options = [
        f"data.val_files={folder}/tasks.jsonl",
        f"tool.env={folder}/environment.py:Nods",
        "tool.tools=[]",
        "tool.max_turns=3",
        "data.max_response_length=96",
        "reward.name=math",
    ]
    cli.main(["eval", "--out", str(out), *words, *options], standalone_mode=False)
    stored = load_trajectories(out / "trajectories.jsonl")
    return {t.task.prompt[-1]["content"]: [turn.text for turn in t.turns] for t in stored}


def test_vllm_given_tokens_writes_what_the_embedded_engine_writes(folder, url, tmp_path):
    model = f"actor_rollout_ref.model.path={folder}/model"
    local = evaluated(folder, tmp_path / "local", "--checkpoint", str(folder / "model"))
    served = evaluated(folder, tmp_path / "served", "--server", url, model)
    assert len(local) == len(served) == TASKS
    assert sum(len(turns) for turns in local.values()) > TASKS
    assert local == served


def test_vllm_given_messages_goes_on_after_a_tool(folder, url, tmp_path):
    turns = evaluated(folder, tmp_path / "out", "--server", url)
    assert len(turns) == TASKS
    assert any(len(texts) == 3 for texts in turns.values())
    for texts in turns.values():
        assert all(text.endswith(("Q", "Y", "{", "6", "</")) for text in texts[:-1])
