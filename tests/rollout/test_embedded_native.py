"""Compiled kernels against torch, and what happens where they cannot be compiled."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from embedded_kit import engine, prompt, tiny_model, using
from torch import Tensor

from agent_r1.rollout.engines.embedded_attention import HeadPreparation
from agent_r1.rollout.engines.embedded_native import Native, load_native
from agent_r1.types import SamplingParams

compile_again = load_native.__wrapped__


@pytest.fixture
def native() -> Native:
    loaded = load_native()
    if loaded is None:
        pytest.skip("no C compiler here")
    return loaded


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _attended(
    query: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None
) -> Tensor:
    """One token's ``[H, D]`` by the definition, in float64."""
    seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
    repeat = query.shape[0] // keys.shape[0]
    k = keys[:, seen].double().repeat_interleave(repeat, 0)
    v = values[:, seen].double().repeat_interleave(repeat, 0)
    scores = (k @ query.double()[..., None])[..., 0] * 0.3
    return (scores.softmax(-1)[:, None] @ v)[:, 0].float()


@pytest.mark.parametrize("dim", [6, 32, 64, 80, 128])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_attention_with_norms_and_rotation(
    native: Native, dim: int, window: int | None, kv_heads: int
) -> None:
    tokens, heads, slots, capacity = 6, 4, 3, 16
    query, key = _random(0, tokens, heads, dim), _random(1, tokens, kv_heads, dim)
    value = _random(2, tokens, kv_heads, dim)
    keys, values = (_random(s, slots, kv_heads, capacity, dim) for s in (3, 4))
    slot = torch.tensor([2, 0, 0, 0, 1, 1])
    position = torch.tensor([15, 4, 5, 6, 0, 1])
    angle = _random(5, tokens, dim // 2).repeat(1, 2)
    prepare = HeadPreparation((_random(6, dim), _random(7, dim), 1e-6), angle.cos(), angle.sin())
    ready_query, ready_key = prepare.apply(query, key)
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[slot, :, position] = ready_key
    expected_values[slot, :, position] = value

    work = query.clone()
    out = native.attend(
        work, key, value, keys, values, slot, position, 5, 0.3, window,
        prepare.norms, (prepare.cos, prepare.sin),
    )  # fmt: skip

    assert torch.allclose(work, ready_query, atol=1e-5)
    assert torch.allclose(keys, expected_keys, atol=1e-5)
    assert torch.equal(values, expected_values)
    for token in range(5):
        s, p = int(slot[token]), int(position[token])
        expected = _attended(ready_query[token], expected_keys[s], expected_values[s], p, window)
        assert torch.allclose(out[token], expected, atol=1e-5)


def test_attention_is_right_at_extreme_scores(native: Native) -> None:
    query = torch.full((1, 1, 32), 60.0)
    keys = torch.zeros(1, 1, 4, 32)
    keys[0, 0, 0], keys[0, 0, 1] = 5.0, -5.0
    values = torch.arange(4.0)[None, None, :, None].expand(1, 1, 4, 32).contiguous()
    here = torch.tensor([0]), torch.tensor([3])
    nothing = torch.zeros(1, 1, 32)
    out = native.attend(query, nothing, nothing + 3, keys, values, *here, 1, 1.0)
    assert torch.allclose(out, torch.zeros(1))
    keys[0, 0, 0] = -5.0
    out = native.attend(query, nothing, nothing + 3, keys, values, *here, 1, 1.0)
    assert torch.allclose(out, torch.full((1,), 2.5))


def test_norm_and_activation(native: Native) -> None:
    for rows, dim in ((1, 8), (7, 100), (300, 128)):
        hidden, delta, weight = _random(0, rows, dim), _random(1, rows, dim), _random(2, dim)
        work = hidden.clone()
        out = native.add_norm(work, delta, weight, 1e-6)
        assert torch.allclose(work, hidden + delta)
        assert torch.allclose(out, F.rms_norm(hidden + delta, (dim,), weight, 1e-6), atol=1e-5)
        again = native.add_norm(work, None, weight, 1e-6)
        assert torch.equal(again, out)
    gate = torch.cat([torch.linspace(-120, 120, 40_001), _random(3, 7)])
    up = _random(4, len(gate))
    expected = F.silu(gate.double()) * up.double()
    assert torch.allclose(native.silu_mul(gate, up).double(), expected, rtol=1e-5, atol=1e-30)


def test_values_that_are_not_numbers_stay_visible(native: Native) -> None:
    hidden = torch.full((1, 8), math.nan)
    assert native.add_norm(hidden, None, torch.ones(8), 1e-6).isnan().all()


def test_the_library_is_compiled_once(
    native: Native, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_again() is not None
    (built,) = (tmp_path / "agent-r1").iterdir()
    stamp = built.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", built.name)
    assert compile_again() is None  # another compiler, which is not there
    assert built.stat().st_mtime_ns == stamp


def test_without_a_compiler_torch_does_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert compile_again() is None
    monkeypatch.setenv("AGENT_R1_NATIVE", "0")
    assert compile_again() is None


def test_both_ways_sample_the_same() -> None:
    model = tiny_model()
    found = [
        using(
            engine(model, native=native),
            lambda built: built.generate(prompt(0, 100), SamplingParams(40, seed=5), "a"),
        )
        for native in (True, False)
    ]
    assert found[0].token_ids == found[1].token_ids
