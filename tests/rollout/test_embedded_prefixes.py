"""Prompts that begin like what another sequence has computed."""

import asyncio

import numpy as np
from embedded_kit import Episode, engine, prompt, reference_logprobs, tiny_model, using

from agent_r1.types import SamplingParams


async def siblings_behind_a_longer_one(built):
    """One has come further; two others then arrive together where it was a few tokens ago."""
    start = list(prompt(0, 20))
    first = await built.generate(start, SamplingParams(8), "a")
    behind = [*start, *first.token_ids[:4]]
    calls = [built.generate(behind, SamplingParams(6), name) for name in ("x", "y", "z")]
    return behind, await asyncio.gather(*calls)


def test_a_prefix_is_not_copied_on_before_it_has_arrived():
    model = tiny_model()
    behind, found = using(engine(model, deterministic=False), siblings_behind_a_longer_one)
    for completion in found:
        done = Episode((*behind, *completion.token_ids), (len(behind),), (completion,))
        assert np.allclose(reference_logprobs(model, done)[0], completion.logprobs, atol=1e-4)
