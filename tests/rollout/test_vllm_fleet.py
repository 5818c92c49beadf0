"""Routing, losses and versions of vLLM replicas, with servers that are scripts."""

import asyncio
import subprocess
import sys

import msgspec
import pytest
import torch

from agent_r1.config.policy import RolloutConfig, VLLMConfig
from agent_r1.errors import ConfigError, EngineError
from agent_r1.rollout.engines.vllm import Replica, VLLMEngine
from agent_r1.rollout.engines.vllm_open import open_vllm
from agent_r1.rollout.engines.vllm_plugin import _prepare_tied
from agent_r1.rollout.engines.vllm_server import (
    INITIAL_VERSION,
    Unreachable,
    _Choice,
    _completion,
)
from agent_r1.rollout.engines.vllm_weights import FileSender, remove_abandoned
from agent_r1.types import Completion, Finish, SamplingParams

PARAMS = SamplingParams(8)


class Script:
    """A server that answers with its own name, unless it is down or refuses weights."""

    def __init__(self, name):
        self.url = name
        self.down = False
        self.refuses = 0
        self.served = INITIAL_VERSION
        self.salts = []
        self.asked = []
        self.gate = None
        self.updates = 0
        self.updating = False
        self.update_gate = None

    async def generate(self, prompt_ids, params, salt):
        if self.down:
            raise Unreachable(f"{self.url} is down")
        self.asked.append(self.served)
        self.salts.append(salt)
        if self.gate is not None:
            await self.gate.wait()
            if self.down:
                raise Unreachable(f"{self.url} is down")
        return Completion((ord(self.url),), (-1.0,), Finish.EOS, ((0, self.served),))

    async def update(self, infos, version, *, keep_cache):
        if self.down or self.refuses:
            self.refuses = max(0, self.refuses - 1)
            raise Unreachable(f"{self.url} takes no weights")
        self.updating = True
        if self.update_gate is not None:
            await self.update_gate.wait()
        self.updating = False
        self.updates += 1
        self.served = version

    async def prepare_updates(self):
        return None

    async def alive(self):
        return not self.down

    async def version(self):
        if self.down:
            raise Unreachable("down")
        return self.served

    async def close(self):
        return None


class Weights:
    def __init__(self):
        self.tensors = {"a": torch.arange(4.0)}

    def parameters(self):
        return self.tensors.items()

    def checkpoint(self):
        return self.tensors.items()


def fleet(tmp_path, names="AB", **options):
    replicas = [Replica(None, f"http://{name}", 1.0) for name in names]
    servers = [Script(name) for name in names]
    for replica, server in zip(replicas, servers, strict=True):
        replica.server = server
    options = {"probe_s": 0.01, "start_timeout_s": 5.0, **options}
    engine = VLLMEngine(replicas, max_model_len=64, sender=FileSender(tmp_path), **options)
    return engine, servers


def run(engine, body):
    async def guarded():
        try:
            return await asyncio.wait_for(body, 20)
        finally:
            await engine.close()

    return asyncio.run(guarded())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_new_trajectories_go_where_the_load_is_least_and_stay_there(tmp_path):
    engine, (a, b) = fleet(tmp_path)

    async def body():
        a.gate = b.gate = asyncio.Event()
        jobs = [asyncio.create_task(engine.generate([1], PARAMS, f"t{i}")) for i in range(6)]
        await until(lambda: len(a.asked) + len(b.asked) == 6)
        assert (len(a.asked), len(b.asked)) == (3, 3)
        a.gate.set()
        first = [chr((await job).token_ids[0]) for job in jobs]
        again = [chr((await engine.generate([1], PARAMS, f"t{i}")).token_ids[0]) for i in range(6)]
        assert first == again

    run(engine, body())


def test_what_a_lost_replica_was_sampling_is_sampled_by_another(tmp_path):
    engine, (a, b) = fleet(tmp_path)

    async def body():
        a.gate = b.gate = asyncio.Event()
        jobs = [asyncio.create_task(engine.generate([1], PARAMS, f"t{i}")) for i in range(4)]
        await until(lambda: len(a.asked) == 2)
        a.down = True
        a.gate.set()
        found = [await job for job in jobs]
        assert {chr(c.token_ids[0]) for c in found} == {"B"}
        assert engine.repeated == 2
        assert not engine.replicas[0].ready
        a.down = False
        await until(lambda: engine.replicas[0].ready)  # taken back

    run(engine, body())


def test_a_replica_that_missed_a_version_is_asked_for_nothing_until_it_has_it(tmp_path):
    engine, (a, _) = fleet(tmp_path)

    async def body():
        await engine.load_weights(Weights(), 0)
        a.down = True
        assert await engine.load_weights(Weights(), 1) == 16
        a.asked.clear()
        for i in range(4):
            completion = await engine.generate([1], PARAMS, f"t{i}")
            assert completion.versions == ((0, 1),)
        a.down = False
        await until(lambda: engine.replicas[0].ready)
        assert a.served == 1  # caught up from the kept file
        await asyncio.gather(*(engine.generate([1], PARAMS, f"u{i}") for i in range(4)))
        assert set(a.asked) == {1}

    run(engine, body())


def test_weights_that_nobody_takes_leave_the_version_before_in_service(tmp_path):
    engine, (a, b) = fleet(tmp_path)

    async def body():
        await engine.load_weights(Weights(), 0)
        a.refuses = b.refuses = 1
        with pytest.raises(EngineError, match="no vLLM server took version 1"):
            await engine.load_weights(Weights(), 1)
        await until(lambda: all(replica.ready for replica in engine.replicas))
        assert (await engine.generate([1], PARAMS, "t")).versions == ((0, 0),)
        await engine.load_weights(Weights(), 2)
        assert (a.served, b.served) == (2, 2)
        assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["version-2.safetensors"]

    run(engine, body())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_kept_cache_is_that_of_the_trajectory_alone(tmp_path):
    engine, (a,) = fleet(tmp_path, "A")

    async def body():
        await engine.load_weights(Weights(), 0, keep_cache=True)
        await engine.generate([1], PARAMS, "old")
        await engine.load_weights(Weights(), 1, keep_cache=True)
        await engine.generate([1], PARAMS, "old")
        await engine.generate([1], PARAMS, "new")
        old, again, new = a.salts
        assert old == again != new
        await engine.load_weights(Weights(), 1, keep_cache=True)  # other weights, same number
        await engine.generate([1], PARAMS, "newest")
        await engine.load_weights(Weights(), 2, keep_cache=False)
        await engine.generate([1], PARAMS, "old")
        assert len({*a.salts[1:]}) == 4

    run(engine, body())


def test_no_two_runs_share_keys_and_values_of_a_server_that_outlives_them(tmp_path):
    salts = []
    for number in range(2):
        engine, (a,) = fleet(tmp_path / str(number), "A")
        (tmp_path / str(number)).mkdir()

        async def body(engine=engine):
            await engine.load_weights(Weights(), 0, keep_cache=True)
            await engine.generate([1], PARAMS, "t")

        run(engine, body())
        salts += a.salts
    assert len(set(salts)) == 2


def test_nothing_is_asked_for_while_weights_change(tmp_path):
    """A trajectory that begins meanwhile would read keys and values of the older weights."""
    engine, (a,) = fleet(tmp_path, "A")

    async def body():
        await engine.load_weights(Weights(), 0, keep_cache=True)
        a.update_gate = asyncio.Event()
        publication = asyncio.create_task(engine.load_weights(Weights(), 1, keep_cache=True))
        await until(lambda: a.updating)
        job = asyncio.create_task(engine.generate([1], PARAMS, "new"))
        await asyncio.sleep(0.05)
        assert a.asked == []
        a.update_gate.set()
        await publication
        await job
        await engine.generate([1], PARAMS, "later")
        assert a.asked == [1, 1] and len(set(a.salts)) == 1

    run(engine, body())


def test_a_server_with_half_of_the_weights_gets_all_of_them_before_it_is_asked_again(tmp_path):
    engine, (a, b) = fleet(tmp_path)

    async def body():
        await engine.load_weights(Weights(), 0)
        a.refuses = b.refuses = 1
        with pytest.raises(EngineError):
            await engine.load_weights(Weights(), 1)
        a.updates = b.updates = 0
        await asyncio.gather(*(engine.generate([1], PARAMS, f"t{i}") for i in range(4)))
        assert (a.updates, b.updates) == (1, 1)  # version 0 once more

    run(engine, body())


def test_a_publication_waits_for_the_only_server_to_come_back(tmp_path):
    engine, (a,) = fleet(tmp_path, "A")

    async def body():
        await engine.load_weights(Weights(), 0)
        a.down = True
        with pytest.raises(EngineError):
            await engine.load_weights(Weights(), 1)
        publication = asyncio.create_task(engine.load_weights(Weights(), 1))
        await asyncio.sleep(0.05)
        assert not publication.done()
        a.down = False
        assert await publication == 16
        assert a.served == 1

    run(engine, body())


def test_servers_that_are_still_starting_are_awaited_and_the_first_one_is_enough(tmp_path):
    engine, (a, b) = fleet(tmp_path, awaits=True)
    a.down = b.down = True

    async def body():
        publication = asyncio.create_task(engine.load_weights(Weights(), 0))
        await asyncio.sleep(0.05)
        assert not publication.done()
        a.down = False
        await publication
        assert (a.served, b.served) == (0, INITIAL_VERSION)
        assert (await engine.generate([1], PARAMS, "t")).token_ids == (ord("A"),)
        b.down = False
        await until(lambda: engine.replicas[1].ready)
        assert b.served == 0

    run(engine, body())


def test_a_server_that_is_not_there_at_the_start_is_an_error_unless_it_is_awaited(tmp_path):
    engine, (a, _) = fleet(tmp_path)
    a.down = True

    async def body():
        with pytest.raises(Unreachable, match="down"):
            await engine.load_weights(Weights(), 0)

    run(engine, body())


def test_a_server_that_does_not_tell_versions_is_refused(tmp_path):
    engine, (a,) = fleet(tmp_path, "A")

    async def body():
        await engine.load_weights(Weights(), 0)
        a.served = INITIAL_VERSION
        with pytest.raises(EngineError, match="does not say which weights"):
            await engine.generate([1], PARAMS, "t")

    run(engine, body())


class Packs:
    """As vLLM's methods on a CPU: what the layer computes with is a copy of its weight."""

    def process_weights_after_loading(self, layer):
        layer.packed = layer.weight.detach().clone()


def test_what_a_tied_layer_had_made_of_its_weight_is_made_anew_and_nothing_else():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in "abc"})
    model["c"].weight = model["a"].weight  # the output layer and the embedding
    for layer in model.values():
        layer.quant_method = Packs()
        layer.quant_method.process_weights_after_loading(layer)
    before = {name: layer.packed for name, layer in model.items()}
    with torch.no_grad():
        model["a"].weight.add_(1)
    _prepare_tied(model)
    assert torch.equal(model["c"].packed, model["a"].weight)
    assert model["a"].packed is before["a"] and model["b"].packed is before["b"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64"])
def test_weights_are_written_as_the_library_reads_them_also_over_an_older_file(tmp_path, dtype):
    from safetensors import safe_open

    from agent_r1.rollout.engines.vllm_weights import write_safetensors

    path = tmp_path / "w.safetensors"
    for size in (7, 3):  # the second file is shorter than the first
        tensors = {
            "a.weight": torch.randn(size, 5).to(getattr(torch, dtype)),
            "scalar": torch.tensor(size),
            "empty": torch.zeros(0, 4),
        }
        write_safetensors(path, tensors, {"k": "v"})
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"k": "v"}
            assert set(file.keys()) == set(tensors)
            for name, tensor in tensors.items():
                found = file.get_tensor(name)
                assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_where_adapters_are_trained_only_they_are_sent(tmp_path):
    pytest.importorskip("peft")
    from agent_r1.models.lora import add_lora, lora_layers
    from agent_r1.models.weights import ModuleWeights
    from agent_r1.rollout.engines.vllm_plugin import FileUpdate
    from agent_r1.testing import tiny_model

    model = add_lora(tiny_model(300), rank=2, alpha=8.0, targets=("q_proj", "down_proj"))
    source, sender = ModuleWeights(model), FileSender(tmp_path)
    first = sender.pack(source, 0)
    sender.keep(first)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    second = sender.pack(source, 1)
    halves = [p for name, p in model.named_parameters() if ".lora_" in name]
    base = [p for name, p in model.named_parameters() if ".lora_" not in name]
    assert second.size == 4 * sum(p.numel() for p in halves)
    assert first.size == second.size + 4 * sum(p.numel() for p in base)
    (told,) = second.infos
    received = dict(FileUpdate(**told).tensors("cpu"))
    expected = dict(source.checkpoint())
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(received[name], tensor), name
    sender.keep(second)  # the first version goes, the base stays
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == [
        "base.safetensors",
        "version-1.safetensors",
    ]
    sender.close()


def test_weights_of_a_killed_trainer_are_removed_and_those_of_a_living_one_are_not(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from agent_r1.rollout.engines import vllm_weights\n"
        "sender = vllm_weights.FileSender(pathlib.Path(sys.argv[1]))\n"
        "sender._place(0)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        remove_abandoned(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        other.kill()
        other.wait()
    remove_abandoned(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_window_beyond_the_models_positions_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    options = {"dtype": "float32", "device": "cpu", "log_folder": tmp_path}
    open_vllm(RolloutConfig(name="vllm"), tmp_path, max_model_len=64, **options)
    with pytest.raises(ConfigError, match=r"65 tokens .*max_prompt_length.* 64 positions"):
        open_vllm(RolloutConfig(name="vllm"), tmp_path, max_model_len=65, **options)
    allowed = VLLMConfig(env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"})
    open_vllm(RolloutConfig(name="vllm", vllm=allowed), tmp_path, max_model_len=65, **options)


def test_nobody_there_is_an_error_after_a_while(tmp_path):
    engine, (a,) = fleet(tmp_path, "A", start_timeout_s=0.2)

    async def body():
        await engine.load_weights(Weights(), 0)
        a.down = True
        with pytest.raises(EngineError, match="lost or behind"):
            await engine.generate([1], PARAMS, "t")

    run(engine, body())


@pytest.mark.parametrize(
    ("finish", "reason", "expected"),
    [
        ("stop", "</code>", (Finish.STOP, "</code>")),
        ("stop", 17, (Finish.EOS, None)),
        ("stop", None, (Finish.EOS, None)),
        ("length", None, (Finish.LENGTH, None)),
    ],
)
def test_vllms_words_become_ours(finish, reason, expected):
    choice = {
        "finish_reason": finish,
        "stop_reason": reason,
        "token_ids": [5, 6, 7],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1}, {"logprob": -2}]},
        "weight_versions": [
            {"version": "3", "start": 0, "end": 2},
            {"version": "4", "start": 2, "end": 3},
        ],
    }
    completion = _completion(msgspec.convert(choice, _Choice))
    assert (completion.finish, completion.stop) == expected
    assert completion.logprobs == (-0.5, -1.0, -2.0)
    assert completion.versions == ((0, 3), (2, 4))
