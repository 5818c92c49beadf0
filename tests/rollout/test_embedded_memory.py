"""Keys and values take no more memory than they were given, and none when nobody is left."""

import asyncio
import logging

import pytest
import torch
from embedded_kit import engine, episode, prompt, tiny_model, using

from agent_r1.errors import EngineError
from agent_r1.rollout.engines import embedded_memory
from agent_r1.rollout.engines.embedded_cache import SlotCache
from agent_r1.rollout.engines.embedded_memory import device_memory, slots_within

A_TOKEN = 2 * 2 * 2 * 16 * 4
"""Keys and values, two layers, two key heads of 16, float32."""


@pytest.fixture
def memory(monkeypatch):
    def set_to(count):
        monkeypatch.setattr(embedded_memory, "device_memory", lambda device: count)

    return set_to


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3"])
def test_as_many_slots_as_fit_at_full_length(memory, family):
    model = tiny_model(family)
    slot = 100 * A_TOKEN
    memory(10 * slot)
    assert slots_within(0.5, model, 100, 64) == 5
    assert slots_within(0.5, model, 50, 64) == 10
    assert slots_within(0.5, model, 100, 3) == 3
    assert slots_within(0.5, model.bfloat16(), 100, 64) == 10


def test_what_the_cache_really_takes_is_what_was_counted(memory):
    memory(10 * 100 * A_TOKEN)
    most = []

    async def body(built):
        names = [f"r{i}" for i in range(12)]
        built.open(names)

        async def watched(i):
            done = await episode(built, names[i], prompt(i, 40), turns=2, seed=i, new_tokens=25)
            most.append(built._loop._cache.nbytes)
            return done

        return await asyncio.gather(*(watched(i) for i in range(12)))

    built = engine(max_model_len=100, max_slots=64, memory_share=0.5)
    done = using(built, body)
    assert len(done) == 12 and built.stats().evictions == 0
    assert 0 < max(most) <= 5 * 100 * A_TOKEN


def test_fewer_slots_than_asked_for_are_announced(memory, caplog):
    memory(1000 * A_TOKEN)
    with caplog.at_level(logging.WARNING):
        engine(max_model_len=100, max_slots=64, memory_share=0.5)
    assert "5 sequences are decoded at once, not 64" in caplog.text
    caplog.clear()
    engine(max_model_len=100, max_slots=4, memory_share=0.5)
    assert not caplog.text


def test_a_sequence_that_cannot_fit_is_refused(memory):
    memory(100 * A_TOKEN)
    with pytest.raises(EngineError, match="gpu_memory_utilization"):
        engine(max_model_len=100, memory_share=0.5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_memory_is_given_back_when_the_last_sequence_is_released(deterministic):
    async def body(built):
        built.open(["a", "b"])
        await asyncio.gather(*(episode(built, name, prompt(1, 30)) for name in "ab"))
        for _ in range(200):
            if not built._loop._cache.nbytes:
                break
            await asyncio.sleep(0.01)
        assert built._loop._cache.nbytes == 0
        built.open(["c"])
        return await episode(built, "c", prompt(1, 30), seed=5)

    built = engine(deterministic=deterministic)
    assert len(using(built, body).completions) == 3


def test_a_cache_never_grows_beyond_its_limits():
    cache = SlotCache(torch.device("cpu"), torch.float32, 100, 5)
    for slots in range(1, 6):
        cache.reserve(slots, 10 * slots)
        cache.layer(0, 2, 16, 16)
    assert (cache.slots, cache.length) == (5, 64)
    cache.reserve(5, 100)
    assert cache.length == 100 and cache.nbytes == 2 * 5 * 2 * 100 * 16 * 4


def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch):
    free = device_memory(torch.device("cpu"))
    group = tmp_path / "a" / "b"
    group.mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("4096\n")
    (group / "memory.max").write_text("max\n")
    monkeypatch.setattr(embedded_memory, "_CGROUPS", group)
    assert device_memory(torch.device("cpu")) == 4096 < free
