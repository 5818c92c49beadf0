"""Weights that change while completions are being sampled."""

import asyncio

import numpy as np
import pytest
from embedded_kit import Episode, engine, prompt, reference_logprobs, tiny_model, using

from agent_r1.types import SamplingParams

LENGTH = 120


async def change_midway(built, source, keep_cache):
    """Two completions, in the middle of which other weights are loaded; then a fresh one."""
    seen = asyncio.Event()
    count = 0

    def watch(tokens):
        nonlocal count
        count += len(tokens)
        if count >= 10:
            seen.set()

    jobs = [
        asyncio.create_task(built.stream(prompt(i, 12 + i), SamplingParams(LENGTH), name, watch))
        for i, name in enumerate("ab")
    ]
    await seen.wait()
    await built.load_weights(source, 7, keep_cache=keep_cache)
    found = [await job for job in jobs]
    return [*found, await built.generate(prompt(0, 12), SamplingParams(8), "c")]


def logprobs_by(model, completion, start):
    done = Episode(
        (*prompt(start, 12 + start), *completion.token_ids), (12 + start,), (completion,)
    )
    return reference_logprobs(model, done)[0]


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_completion_goes_on_with_the_new_weights_and_says_since_when(family):
    model, other = tiny_model(family), tiny_model(family, seed=1)
    built = engine(model, deterministic=False)
    *found, fresh = using(built, lambda e: change_midway(e, other, keep_cache=False))
    assert fresh.versions == ((0, 7),)
    for start, completion in enumerate(found):
        (first, old), (changed, new) = completion.versions
        assert (first, old, new, len(completion.token_ids)) == (0, 0, 7, LENGTH)
        assert 0 < changed < LENGTH
        before, after = (logprobs_by(m, completion, start) for m in (model, other))
        assert np.allclose(before[:changed], completion.logprobs[:changed], atol=1e-4)
        # Keys and values are those of the new weights for every token of the context.
        assert np.allclose(after[changed:], completion.logprobs[changed:], atol=1e-4)


def test_a_kept_cache_is_what_the_old_weights_computed():
    model, other = tiny_model(), tiny_model(seed=1)
    built = engine(model, deterministic=False)
    *found, fresh = using(built, lambda e: change_midway(e, other, keep_cache=True))
    for start, completion in enumerate(found):
        changed = completion.versions[1][0]
        before, after = (logprobs_by(m, completion, start) for m in (model, other))
        assert np.allclose(before[:changed], completion.logprobs[:changed], atol=1e-4)
        assert not np.allclose(after[changed:], completion.logprobs[changed:], atol=1e-2)
    # A sequence that begins afterwards copies no prefix of the old weights.
    done = Episode((*prompt(0, 12), *fresh.token_ids), (12,), (fresh,))
    assert np.allclose(reference_logprobs(other, done)[0], fresh.logprobs, atol=1e-4)
