"""The memory plan: worked sizes, the measured peak of an update, and what it advises."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError
from agent_r1.trainer import memory
from agent_r1.trainer.memory_spread import Processes

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
QWEN3_4B = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


@pytest.fixture
def qwen(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_4B))
    return tmp_path


def configured(folder, *overrides):
    return load_config(None, [f"actor_rollout_ref.model.path={folder}", *overrides])


def plan(folder, *overrides, gpu=79.2, host=256):
    config = configured(folder, *overrides)
    return memory.plan_memory(
        config, device="cuda", device_bytes=int(gpu * GIB), host_bytes=host * GIB
    )


def part(found, name):
    everything = [*found.resident, *(p for parts in found.phases.values() for p in parts)]
    return next(p for p in everything if p.name == name)


def test_weights_states_and_cache_of_a_published_shape(qwen):
    """Qwen3-4B has 4,022,468,096 parameters: 2 bytes of weight, 4 of master, 8 of moments."""
    found = plan(qwen)
    n = 4_022_468_096
    assert part(found, "policy, weights").device == 2 * n
    assert part(found, "policy, float32 masters").device == 4 * n
    assert part(found, "policy, moments").device == 8 * n
    assert part(found, "gradients").device == 4 * n
    assert not found.fits
    # keys and values: 36 layers x 2 x 8 heads x 128 x 2 bytes = 147,456 bytes a token
    length = found.phases["rollout"][0].device // 147_456
    default = configured(qwen)
    assert length % (default.data.max_prompt_length + default.data.max_response_length) == 0


def test_adapters_have_states_and_the_base_has_none(qwen):
    found = plan(qwen, "actor_rollout_ref.model.lora_rank=32")
    q, kv, d, f = 4096, 1024, 2560, 9728
    pairs = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
    adapters = 36 * 32 * sum(a + b for a, b in pairs)
    assert part(found, "policy, moments").device == 8 * adapters
    assert part(found, "policy, weights").device == 2 * (4_022_468_096 + adapters)
    assert found.fits


def test_a_reference_costs_nothing_beside_adapters(qwen):
    kl = "actor_rollout_ref.actor.use_kl_loss=true"
    assert part(plan(qwen, kl), "reference, weights").device == 2 * 4_022_468_096
    visiting = plan(qwen, kl, "actor_rollout_ref.ref.offload=true")
    assert part(visiting, "reference, weights").host == 2 * 4_022_468_096
    assert part(visiting, "reference, while it is asked").device == 2 * 4_022_468_096
    with pytest.raises(StopIteration):
        part(plan(qwen, kl, "actor_rollout_ref.model.lora_rank=8"), "reference, weights")


def test_what_does_not_fit_is_refused_with_settings_that_do(qwen, monkeypatch):
    monkeypatch.setattr(
        memory, "device_memory", lambda device: (80 if device.type == "cuda" else 40) * GIB
    )
    config = configured(qwen, "algorithm.adv_estimator=gae")
    with pytest.raises(ConfigError, match=r"DOES NOT FIT[\s\S]*It would fit with[\s\S]*lora_rank"):
        memory.check_memory(config, "cuda")
    relaxed = configured(qwen, "algorithm.adv_estimator=gae", "trainer.memory_check=warn")
    assert "DOES NOT FIT" in str(memory.check_memory(relaxed, "cuda"))
    fitting = configured(qwen, "actor_rollout_ref.model.lora_rank=32")
    assert "fits" in str(memory.check_memory(fitting, "cuda"))
    off = configured(qwen, "algorithm.adv_estimator=gae", "trainer.memory_check=off")
    assert memory.check_memory(off, "cuda") is None


def test_advice_fits_when_it_is_taken(qwen):
    config = configured(qwen, "algorithm.adv_estimator=gae")
    tight = memory.plan_memory(config, device="cuda", device_bytes=80 * GIB, host_bytes=256 * GIB)
    ways = list(memory.ways_to_fit(config, tight))
    assert 1 <= len(ways) <= 3
    for way in ways:
        overrides = re.split(r" with ", way)[1].split()
        assert plan(qwen, "algorithm.adv_estimator=gae", *overrides, gpu=80).fits


@pytest.mark.parametrize("cards", [1, 8])
@pytest.mark.parametrize("name", ["ppo", "grpo", "reinforce_plus_plus"])
def test_the_run_scripts_fit_one_card_of_80_gb_and_eight(name, cards, qwen):
    """An 80 GB card has 79.2 GiB; the machine beside one is taken to have 192 GiB."""
    script = (ROOT / f"examples/trainer/run_{name}_retool.sh").read_text()
    block = re.search(r"settings=\(\n(.*?)\n\)", script, re.S).group(1)
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
    overrides = [line for line in lines if "=" in line and "$" not in line]
    overrides = [line.replace("'", "") for line in overrides]
    found = plan(qwen, *overrides, f"trainer.n_gpus_per_node={cards}", host=192)
    assert found.fits, found.table()


EIGHT = "trainer.n_gpus_per_node=8"


def test_eight_processes_share_weights_states_and_gradients(qwen):
    found = plan(qwen, EIGHT, "actor_rollout_ref.actor.use_kl_loss=true")
    n = 4_022_468_096
    assert part(found, "policy, float32 shards").device == 4 * n // 8
    assert part(found, "policy, moments of the shards").device == n
    assert part(found, "gradients").device == 4 * n // 8
    assert part(found, "reference, float32 shards").device == 4 * n // 8
    assert part(found, "the engine's copy of the policy").device == 2 * n
    table = 151936 * 2560
    assert part(found, "gathered weights").device == 2 * (2 * (n - table) // 36 + table)
    whole = plan(qwen, EIGHT, "actor_rollout_ref.actor.fsdp_config.reshard_after_forward=false")
    assert part(whole, "gathered weights").device == 2 * n
    assert part(whole, "gradients").device == 4 * n // 8
    once = plan(qwen, EIGHT, "actor_rollout_ref.actor.fsdp_config.gradient_sync=step")
    assert part(once, "gradients").device == 4 * n
    assert "first of 8 processes" in found.table()


def test_two_machines_and_copies_within_each(qwen):
    sixteen = (EIGHT, "trainer.nnodes=2")
    n = 4_022_468_096
    assert part(plan(qwen, *sixteen), "policy, float32 shards").device == 4 * n // 16
    hybrid = plan(qwen, *sixteen, "actor_rollout_ref.actor.fsdp_config.fsdp_size=8")
    assert part(hybrid, "policy, float32 shards").device == 4 * n // 8


@pytest.mark.parametrize(
    "setting", ["actor.optim.offload=true", "actor.fsdp_config.param_offload=true"]
)
def test_offloaded_shards_are_in_the_memory_of_their_machine(qwen, setting):
    found = plan(qwen, EIGHT, "trainer.nnodes=2", f"actor_rollout_ref.{setting}")
    each = 4_022_468_096 // 16
    assert part(found, "policy, shards, moments, gradients").host == 8 * 16 * each
    assert part(found, "gradients").device == 0


def test_the_processes_of_a_job_that_is_running_count(qwen, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert plan(qwen, EIGHT).processes == Processes(4, 2)


def test_advice_for_several_processes_names_what_they_can_do(qwen):
    config = configured(qwen, "algorithm.adv_estimator=gae", "trainer.n_gpus_per_node=2")
    tight = memory.plan_memory(config, device="cuda", device_bytes=48 * GIB, host_bytes=256 * GIB)
    assert not tight.fits
    ways = list(memory.ways_to_fit(config, tight))
    assert ways and not [way for way in ways if "optim" in way]
    for way in ways:
        overrides = re.split(r" with ", way)[1].split()
        taken = plan(
            qwen,
            "algorithm.adv_estimator=gae",
            "trainer.n_gpus_per_node=2",
            *overrides,
            gpu=48,
        )
        assert taken.fits


def measured(**settings):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    script = Path(__file__).with_name("measure_update.py")
    command = [sys.executable, script, json.dumps(settings)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment | place)
        for place in places(settings.get("ranks", 1))
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return max(found, key=lambda one: one["measured"])


def places(ranks):
    """The environment of each process of a job."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    job = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [job | one for one in own]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"checkpointing": True},
        {"lora_rank": 8},
        {"lora_rank": 8, "checkpointing": True},
        {"dtype": "bfloat16"},
        {"ranks": 2, "reshard": True, "sync": "micro_batch"},
        {"ranks": 2, "reshard": False, "sync": "micro_batch"},
        {"ranks": 2},
        {"ranks": 2, "reshard": True, "sync": "micro_batch", "lora_rank": 8},
    ],
    ids=str,
)
def test_the_plan_is_the_measured_peak_within_a_tenth(settings):
    found = measured(**settings)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.1), found
