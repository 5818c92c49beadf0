"""Same seeds and same tool texts give the same bits, however long the tools take."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from embedded_kit import Episode, engine, episode, prompt, tiny_model, using

from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.types import SamplingParams


def _delays(kind: int) -> Callable[[], float]:
    source = random.Random(kind)
    return (lambda: 0.0) if kind == 0 else (lambda: source.choice([0.0, 0.001, 0.004, 0.02]))


def _wave(model: object, kind: int, **options: object) -> tuple[list[Episode], EmbeddedEngine]:
    """Sixteen sequences of unlike lengths, tools of random latency."""
    shuffle = random.Random(kind)

    async def body(built: EmbeddedEngine) -> list[Episode]:
        names = [f"r{i}" for i in range(16)]
        for step in range(2):
            built.open(names)
            jobs = [
                asyncio.create_task(
                    episode(
                        built,
                        name,
                        prompt(i // 4, 20 + i // 4),
                        turns=1 + i % 4,
                        seed=i + step,
                        new_tokens=3 + 5 * (i % 3),
                        delay=_delays(kind),
                    )
                )
                for i, name in shuffle.sample(list(enumerate(names)), 16)
            ]
            await asyncio.gather(*jobs)
        return sorted((job.result() for job in jobs), key=lambda one: one.tokens)

    built = engine(model, **options)
    return using(built, body), built


@pytest.mark.parametrize(
    "options",
    [
        {"max_slots": 16, "readmit_after": 1},
        {"max_slots": 16, "readmit_after": 5},
        {"max_slots": 5, "readmit_after": 3, "prefill_chunk": 16},
    ],
)
def test_tool_latency_changes_no_bit(options: dict[str, int]) -> None:
    model = tiny_model()
    expected, first = _wave(model, 0, **options)
    for kind in (1, 2, 3):
        actual, again = _wave(model, kind, **options)
        # Episodes hold the log-probabilities: equality is equality to the last bit.
        assert actual == expected
        for counter in ("steps", "decode_steps", "prefill_tokens", "shared_tokens"):
            assert getattr(again.stats(), counter) == getattr(first.stats(), counter)
        assert again.stats().late_sequences == 0


def test_waiting_is_counted() -> None:
    async def body(built: EmbeddedEngine) -> None:
        built.open(["a"])
        await episode(built, "a", prompt(0, 5), turns=2, delay=lambda: 0.2)

    built = engine()
    using(built, body)
    assert built.stats().wait_seconds > 0.15
    assert built.stats().busy_seconds > 0


def test_without_determinism_nobody_is_waited_for() -> None:
    async def body(built: EmbeddedEngine) -> None:
        built.open(["a", "never"])
        first = await built.generate(prompt(0, 5), SamplingParams(3), "a")
        assert len(first.token_ids) == 3

    built = engine(deterministic=False)
    using(built, body)
    assert built.stats().late_sequences == 0


def test_whoever_stays_away_too_long_is_given_up_on() -> None:
    async def body(built: EmbeddedEngine) -> None:
        built.open(["a", "b", "never"])
        await asyncio.gather(
            built.generate(prompt(0, 5), SamplingParams(3), "a"),
            built.generate(prompt(1, 5), SamplingParams(3), "b"),
        )
        await built.generate(prompt(0, 5), SamplingParams(30), "b")  # "a" is away for good

    built = engine(max_wait_s=0.05)
    using(built, body)
    assert built.stats().late_sequences == 2


def test_unannounced_sequences_need_no_release() -> None:
    async def body(built: EmbeddedEngine) -> None:
        for name in "abc":
            await built.generate(prompt(0, 5), SamplingParams(3), name)
        built.open(["d"])
        await built.generate(prompt(0, 5), SamplingParams(3), "d")

    using(engine(max_slots=2), body)


def test_announcing_again_starts_a_sequence_over() -> None:
    async def body(built: EmbeddedEngine) -> None:
        for _ in range(3):
            built.open(["a", "b"])
            jobs = (built.generate(prompt(0, 9), SamplingParams(3), name) for name in "ab")
            await asyncio.gather(*jobs)

    built = engine()
    using(built, body)
    assert built.stats().reused_tokens == 0
    assert built.stats().generated_tokens == 18
