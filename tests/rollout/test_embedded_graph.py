"""Decode steps of rounded shapes: the same function, and nobody's memory but one's own.

Without a GPU a recorded step is the function itself, run again over the same memory.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from embedded_kit import FAMILIES, Episode, engine, episode, prompt, reference_logprobs, tiny_model
from embedded_kit import using as run_with

from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.rollout.engines.embedded_graph import key_bucket, row_bucket


def episodes(built: EmbeddedEngine, count: int = 11, **params: float) -> list[Episode]:
    async def body(engine: EmbeddedEngine) -> list[Episode]:
        engine.open([f"r{i}" for i in range(count)])
        return await asyncio.gather(
            *(
                episode(engine, f"r{i}", prompt(i // 3, 20 + i // 3), seed=i, **params)
                for i in range(count)
            )
        )

    return run_with(built, body)


def worst(model: torch.nn.Module, done: list[Episode], temperature: float) -> float:
    pairs = [
        (np.asarray(reference), np.asarray(completion.logprobs))
        for one in done
        for reference, completion in zip(
            reference_logprobs(model, one, temperature), one.completions, strict=True
        )
    ]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_give_the_log_probabilities_of_a_plain_forward(family: str) -> None:
    model = tiny_model(family)
    done = episodes(engine(model, max_slots=5, prefill_chunk=16, graphs=True), temperature=0.8)
    assert worst(model, done, 0.8) < 1e-3


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.8}]
)
def test_recorded_steps_sample_what_plain_ones_do(params: dict[str, float]) -> None:
    plain = episodes(engine(tiny_model(), native=False), **params)
    recorded = episodes(engine(tiny_model(), native=False, graphs=True), **params)
    assert [one.tokens for one in plain] == [one.tokens for one in recorded]


def test_recorded_runs_repeat_to_the_last_bit() -> None:
    first, second = (episodes(engine(tiny_model(), max_slots=5, graphs=True)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("keep", [True, False])
def test_later_waves_are_served_with_the_weights_of_their_time(keep: bool) -> None:
    model = tiny_model()

    async def body(built: EmbeddedEngine) -> list[Episode]:
        done = []
        for wave in range(3):
            built.open(["a", "b"])
            pair = [episode(built, name, prompt(i, 20)) for i, name in enumerate("ab")]
            done += await asyncio.gather(*pair)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9)
            await built.load_weights(None, wave + 1)
        built.open(["a", "b"])
        pair = [episode(built, name, prompt(i, 20)) for i, name in enumerate("ab")]
        return [*done, *await asyncio.gather(*pair)]

    options = {"graphs": True, "free_when_idle": not keep}
    done = run_with(engine(model, **options), body)
    assert worst(model, done[-2:], 1.0) < 1e-3
    assert worst(model, done[:2], 1.0) > 1e-2


@pytest.mark.parametrize("limit", [1, 3, 128, 300])
def test_row_buckets_hold_the_rows_and_waste_at_most_a_third(limit: int) -> None:
    for count in range(1, limit + 1):
        size = row_bucket(count, limit)
        assert count <= size <= limit
        assert size == limit or size <= max(count * 4 / 3 + 1, 1) or count <= 8
    assert len({row_bucket(count, 256) for count in range(1, 257)}) <= 24


def test_key_buckets_hold_the_keys_and_waste_at_most_half() -> None:
    for length in range(1, 5000):
        size = key_bucket(length, 4999)
        assert length <= size <= 4999
        assert size <= max(128, 1.5 * length)
