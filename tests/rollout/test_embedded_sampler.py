"""Draws: what they depend on, and the distributions they follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from agent_r1.rollout.engines.embedded_sampler import RowSampling, inverse_cdf, sample, uniforms


def _rows(count: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> RowSampling:
    return RowSampling(
        np.arange(count).astype(np.uint64),
        np.zeros(count, np.int64),
        np.full(count, temperature),
        np.full(count, top_k),
        np.full(count, top_p),
    )


def test_uniforms_are_a_fixed_function_of_seed_and_position() -> None:
    seeds = np.array([0, 0, 1, 2**64 - 1], np.uint64)
    drawn = uniforms(seeds, np.array([0, 1, 0, 5]))
    assert len(set(drawn.tolist())) == 4
    assert uniforms(seeds[2:3], np.array([0]))[0] == drawn[2]

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    by_hand = mix((mix(1 + golden) + golden) % 2**64) >> 11
    assert drawn[2] == by_hand / 2**53


def test_uniforms_are_uniform_over_seeds_and_over_positions() -> None:
    index = np.arange(40_000)
    zero = np.zeros_like(index)
    for drawn in (
        uniforms(index.astype(np.uint64), zero),
        uniforms(zero.astype(np.uint64), index),
    ):
        counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
        # Chi-square with 19 degrees of freedom; 43.8 is its 0.999 quantile.
        assert ((counts - 2000) ** 2 / 2000).sum() < 43.8
        assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def _reference(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    scores = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.6), (1.5, 8, 0.8), (1.0, 1, 1.0)],
)
def test_frequencies_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    count = 20_000
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)) * 1.5
    expected = _reference(logits, temperature, top_k, top_p).double().numpy()
    tokens, logprobs = sample(logits.expand(count, -1), _rows(count, temperature, top_k, top_p))
    seen = np.bincount(tokens, minlength=16)
    assert (seen[expected == 0] == 0).all()
    inside = expected > 0
    wanted = expected[inside] * count
    # 45 exceeds the 0.999 quantile of chi-square with 15 degrees of freedom (37.7).
    assert ((seen[inside] - wanted) ** 2 / wanted).sum() < 45
    before_cut = (logits[0] / temperature).log_softmax(-1).numpy()
    assert np.allclose(logprobs, before_cut[tokens], atol=1e-6)


def test_greedy_takes_the_maximum_and_reports_the_untempered_logprob() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    rows = RowSampling(
        np.zeros(4, np.uint64),
        np.zeros(4, np.int64),
        np.array([0.0, 0.5, 0.0, 1.0]),
        np.zeros(4, np.int64),
        np.ones(4),
    )
    tokens, logprobs = sample(logits, rows)
    for row in (0, 2):
        assert tokens[row] == logits[row].argmax()
        assert logprobs[row] == pytest.approx(logits[row].log_softmax(-1).max().item(), abs=1e-6)
    tempered = (logits[1] / 0.5).log_softmax(-1)
    assert logprobs[1] == pytest.approx(tempered[tokens[1]].item(), abs=1e-6)


def test_a_row_draws_the_same_in_any_batch() -> None:
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    together, _ = sample(logits, _rows(64))
    for row in range(0, 64, 7):
        alone = RowSampling(
            np.array([row], np.uint64),
            np.zeros(1, np.int64),
            np.ones(1),
            np.zeros(1, np.int64),
            np.ones(1),
        )
        assert sample(logits[row : row + 1], alone)[0][0] == together[row]


def test_large_vocabularies_are_searched_in_two_levels_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(32, 20_001, generator=generator) ** 8
    weights[:, ::3] = 0
    draws = torch.rand(32, generator=generator, dtype=torch.float64)
    cdf = weights.double().cumsum(-1)
    expected = torch.searchsorted(cdf, (draws * cdf[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(inverse_cdf(weights, draws), expected)


def test_draws_at_the_edges_choose_possible_tokens() -> None:
    weights = torch.zeros(2, 10)
    weights[:, 3], weights[:, 6] = 0.3, 0.7
    almost_one = float(np.nextafter(1.0, 0.0))
    draws = torch.tensor([0.0, almost_one], dtype=torch.float64)
    assert inverse_cdf(weights, draws).tolist() == [3, 6]
    wide = torch.zeros(2, 9000)
    wide[:, 700], wide[:, 8000] = 0.3, 0.7
    assert inverse_cdf(wide, draws).tolist() == [700, 8000]
