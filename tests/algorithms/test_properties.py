"""What must hold for any batch, any estimator and any loss."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.algorithms.aggregate import Aggregation, aggregate, loss_weights
from agent_r1.algorithms.episodes import AdvantageInputs
from agent_r1.algorithms.losses import PolicyLossInputs, value_loss
from agent_r1.algorithms.off_policy import importance_weights
from agent_r1.algorithms.registry import (
    ADVANTAGES,
    POLICY_LOSSES,
    resolve_advantage,
    resolve_policy_loss,
)

ESTIMATORS = sorted({*ADVANTAGES.names()} - {"opd"})  # which reads no reward
LOSSES = sorted(set(POLICY_LOSSES.names()) - {"vanilla"})
PER_TOKEN = ("turn_index", "values", "token_reward")
SEEDS = st.integers(0, 2**31 - 1)
EXAMPLES = settings(max_examples=40, derandomize=True)


def random_batch(seed: int, padding: int = 1) -> AdvantageInputs:
    """Trajectories of 1 to 3 segments with 0 to 4 turns each, in shuffled rows."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    rows: list[list[int]] = []
    owner, segment = [], []
    trajectories = integer(1, 6)
    for trajectory in range(trajectories):
        turn = 0
        for part in range(integer(1, 3)):
            row: list[int] = []
            for _ in range(integer(0, 3)):
                row += [-1] * integer(0, 2) + [turn] * integer(1, 3)
                turn += 1
            rows.append(row)
            owner.append(trajectory)
            segment.append(part)
    for _ in range(padding):
        rows.append([])
        owner.append(-1)
        segment.append(0)
    width = max(map(len, rows)) + 1
    index = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    of = torch.tensor(owner)
    order = torch.randperm(len(rows), generator=g)

    def number(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def per_trajectory(values: torch.Tensor) -> torch.Tensor:
        return values[of]

    groups = torch.randint(0, 3, (trajectories + 1,), generator=g)
    turns = int(index.max()) + 2
    batch = AdvantageInputs(
        loss_mask=index >= 0,
        reward=per_trajectory(number(trajectories + 1).round(decimals=1)),
        group_id=per_trajectory(groups),
        trajectory_id=of,
        segment=torch.tensor(segment),
        turn_index=index,
        turn_reward=per_trajectory(number(trajectories + 1, turns)) if integer(0, 1) else None,
        values=number(*index.shape),
        token_reward=0.1 * number(*index.shape) if integer(0, 1) else None,
        truncated=per_trajectory(number(trajectories + 1) > 0),
        bootstrap_value=per_trajectory(number(trajectories + 1)),
        greedy_reward=per_trajectory(number(trajectories + 1)),
        state_id=per_trajectory(torch.randint(0, 3, (trajectories + 1, turns), generator=g)),
    )
    return take(batch, order)


def take(batch: AdvantageInputs, rows: torch.Tensor) -> AdvantageInputs:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return AdvantageInputs(**{k: None if v is None else v[rows] for k, v in fields.items()})


def poison(batch: AdvantageInputs) -> AdvantageInputs:
    """Absurd numbers wherever nothing may be read."""
    mask = batch.loss_mask
    nobody = ~mask.any(1)

    def off(value: torch.Tensor | None, where: torch.Tensor, bad: float) -> torch.Tensor | None:
        return None if value is None else torch.where(where, torch.full_like(value, bad), value)

    empty = {
        i: bool(nobody[batch.trajectory_id == i].all()) for i in set(batch.trajectory_id.tolist())
    }
    dead = torch.tensor([empty[i] for i in batch.trajectory_id.tolist()])
    return dataclasses.replace(
        batch,
        values=off(batch.values, ~mask, math.nan),
        token_reward=off(batch.token_reward, ~mask, math.inf),
        turn_index=off(batch.turn_index, ~mask, 99),
        reward=off(batch.reward, dead, 1e9),
        group_id=off(batch.group_id, dead, 0),
    )


def run(name: str, batch: AdvantageInputs) -> tuple[torch.Tensor, ...]:
    result = resolve_advantage(name)(batch)
    if result.returns is None:
        return (result.advantages,)
    return result.advantages, result.returns


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_advantages_do_not_read_what_is_masked(name, seed):
    batch = random_batch(seed)
    for clean, dirty in zip(run(name, batch), run(name, poison(batch)), strict=True):
        torch.testing.assert_close(clean, dirty, atol=0, rtol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_advantages_are_finite_and_zero_where_the_model_did_not_write(name, seed):
    batch = random_batch(seed)
    for result in run(name, batch):
        assert result.shape == batch.loss_mask.shape
        assert result.isfinite().all() and not result[~batch.loss_mask].any()


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_the_order_of_rows_does_not_matter_to_advantages(name, seed):
    batch = random_batch(seed)
    order = torch.randperm(len(batch.reward), generator=torch.Generator().manual_seed(seed))
    for straight, shuffled in zip(run(name, batch), run(name, take(batch, order)), strict=True):
        torch.testing.assert_close(straight[order], shuffled, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_ids_are_names_and_not_numbers(name, seed):
    batch = random_batch(seed)
    renamed = dataclasses.replace(
        batch, group_id=1000 - 7 * batch.group_id, trajectory_id=500 - 3 * batch.trajectory_id
    )
    for a, b in zip(run(name, batch), run(name, renamed), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_padding_rows_change_nothing(name, seed):
    batch = random_batch(seed, padding=0)
    padded = random_batch(seed, padding=0)
    rows = torch.cat([torch.arange(len(batch.reward)), torch.zeros(3, dtype=torch.int64)])
    padded = take(padded, rows)
    extra = torch.arange(len(rows)) >= len(batch.reward)
    padded = dataclasses.replace(
        padded,
        loss_mask=padded.loss_mask & ~extra[:, None],
        turn_index=torch.where(extra[:, None], -1, padded.turn_index),
        trajectory_id=torch.where(extra, -1, padded.trajectory_id),
        group_id=torch.where(extra, -1, padded.group_id),
    )
    for plain, wide in zip(run(name, batch), run(name, padded), strict=True):
        torch.testing.assert_close(plain, wide[~extra], atol=1e-9, rtol=1e-9)
        assert not wide[extra].any()


@pytest.mark.parametrize("name", ESTIMATORS)
@EXAMPLES
@given(seed=SEEDS)
def test_how_a_trajectory_is_cut_into_segments_does_not_matter(name, seed):
    """Laying all segments of a trajectory end to end in one row gives the same numbers."""
    batch = random_batch(seed, padding=0)
    ids = sorted(set(batch.trajectory_id.tolist()))
    width = batch.loss_mask.shape[1]
    parts = {
        i: sorted(
            (batch.trajectory_id == i).nonzero()[:, 0].tolist(),
            key=lambda row: int(batch.segment[row]),
        )
        for i in ids
    }
    longest = max(map(len, parts.values()))
    first = torch.tensor([parts[i][0] for i in ids])
    merged = take(batch, first)

    def laid_out(value: torch.Tensor | None, fill: float) -> torch.Tensor | None:
        if value is None:
            return None
        out = torch.full((len(ids), longest * width), fill, dtype=value.dtype)
        for e, i in enumerate(ids):
            for s, row in enumerate(parts[i]):
                out[e, s * width : (s + 1) * width] = value[row]
        return out

    whole = AdvantageInputs(
        **{
            f.name: getattr(merged, f.name)
            for f in dataclasses.fields(merged)
            if f.name not in (*PER_TOKEN, "loss_mask", "segment")
        },
        loss_mask=laid_out(batch.loss_mask, False),
        segment=torch.zeros(len(ids), dtype=torch.int64),
        turn_index=laid_out(batch.turn_index, -1),
        values=laid_out(batch.values, 0.0),
        token_reward=laid_out(batch.token_reward, 0.0),
    )
    for cut, joined in zip(run(name, batch), run(name, whole), strict=True):
        torch.testing.assert_close(laid_out(cut, 0.0), joined, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_fully_masked_batch_gives_zeros(name):
    batch = random_batch(3)
    empty = dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    for result in run(name, empty):
        assert result.shape == batch.loss_mask.shape and not result.any()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_empty_batch_gives_an_empty_result(name):
    batch = take(random_batch(3), torch.tensor([], dtype=torch.int64))
    for result in run(name, batch):
        assert result.shape == batch.loss_mask.shape


def loss_inputs(seed: int) -> PolicyLossInputs:
    batch = random_batch(seed, padding=2)
    g = torch.Generator().manual_seed(seed)

    def number() -> torch.Tensor:
        return torch.randn(batch.loss_mask.shape, generator=g, dtype=torch.float64)

    return PolicyLossInputs(number(), number(), number(), batch.loss_mask, number().exp())


def total(name: str, inputs: PolicyLossInputs, weights: torch.Tensor) -> torch.Tensor:
    terms = resolve_policy_loss(name)(inputs)
    return aggregate(terms.loss, inputs.loss_mask, weights)


def part(inputs: PolicyLossInputs, rows: torch.Tensor, width: int) -> PolicyLossInputs:
    fields = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    return PolicyLossInputs(**{k: v[rows][:, :width] for k, v in fields.items()})


@pytest.mark.parametrize("mode", [m.value for m in Aggregation])
@pytest.mark.parametrize("name", LOSSES)
@EXAMPLES
@given(seed=SEEDS, pieces=st.integers(1, 5))
def test_micro_batches_add_up_in_value_and_gradient(name, mode, seed, pieces):
    inputs = loss_inputs(seed)
    weights = loss_weights(
        inputs.loss_mask, mode, trajectory_id=random_batch(seed, 2).trajectory_id, divisor=7.0
    )
    logprobs = inputs.logprobs.clone().requires_grad_()
    inputs = dataclasses.replace(inputs, logprobs=logprobs)
    whole = total(name, inputs, weights)
    gradient = torch.autograd.grad(whole, logprobs, allow_unused=True)[0]
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    sums, parts = 0.0, torch.zeros_like(logprobs)
    for rows in order.chunk(pieces):
        # As wide as its longest row, the way a micro-batch is padded.
        columns = inputs.loss_mask[rows].any(0).nonzero()
        width = int(columns.max()) + 1 if len(columns) else 1
        value = total(name, part(inputs, rows, width), weights[rows])
        parts += torch.autograd.grad(value, logprobs)[0]
        sums += value.item()
    assert sums == pytest.approx(whole.item(), abs=1e-9)
    torch.testing.assert_close(parts, gradient, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@EXAMPLES
@given(seed=SEEDS, bad=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_losses_do_not_read_what_is_masked(name, seed, bad):
    clean = loss_inputs(seed)
    weights = loss_weights(clean.loss_mask)
    fields = {f.name: getattr(clean, f.name) for f in dataclasses.fields(clean)}
    dirty = {
        k: v if k == "loss_mask" else torch.where(clean.loss_mask, v, torch.full_like(v, bad))
        for k, v in fields.items()
    }
    dirty["logprobs"].requires_grad_()
    value = total(name, PolicyLossInputs(**dirty), weights)
    gradient = torch.autograd.grad(value, dirty["logprobs"])[0]
    assert value.item() == pytest.approx(total(name, clean, weights).item(), abs=1e-12)
    assert gradient.isfinite().all() and not gradient[~clean.loss_mask].any()


@EXAMPLES
@given(seed=SEEDS, pieces=st.integers(1, 5), clip=st.sampled_from([0.2, None]))
def test_the_value_loss_is_split_invariant_and_ignores_what_is_masked(seed, pieces, clip):
    x = loss_inputs(seed)
    weights = loss_weights(x.loss_mask)
    bad = torch.where(x.loss_mask, 0.0, math.nan)

    def loss(rows):
        values, old, target = (v[rows] for v in (x.logprobs, x.old_logprobs, x.advantages))
        mask = x.loss_mask[rows]
        dirt = bad[rows]
        terms = value_loss(values + dirt, old + dirt, target + dirt, mask, cliprange_value=clip)
        return aggregate(terms.loss, mask, weights[rows]).item()

    everything = torch.arange(len(weights))
    parts = sum(loss(rows) for rows in everything.chunk(pieces))
    assert parts == pytest.approx(loss(everything), abs=1e-9)


@EXAMPLES
@given(
    seed=SEEDS,
    level=st.sampled_from(["token", "sequence", "geometric"]),
    mode=st.sampled_from(["truncate", "mask"]),
)
def test_importance_weights_are_bounded_permutable_and_blind_to_masked_tokens(seed, level, mode):
    x = loss_inputs(seed)
    ids = random_batch(seed, 2).trajectory_id
    options = {"level": level, "mode": mode, "upper": 2.0, "lower": 0.5}

    def weigh(rows, dirt):
        return importance_weights(
            (x.old_logprobs + dirt)[rows],
            (x.logprobs - dirt)[rows],
            x.loss_mask[rows],
            trajectory_id=ids[rows],
            **options,
        )

    everything = torch.arange(len(ids))
    clean = weigh(everything, 0.0)
    assert clean.isfinite().all() and (clean >= 0).all() and (clean <= 2.0).all()
    assert mode == "truncate" or ((clean == 0) | (clean >= 0.5)).all()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    dirty = weigh(order, torch.where(x.loss_mask, 0.0, math.nan))
    torch.testing.assert_close(clean[order], dirty, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_on_a_gpu_are_those_of_the_cpu(name):
    batch = random_batch(7)
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    moved = AdvantageInputs(**{k: None if v is None else v.cuda() for k, v in fields.items()})
    for cpu, gpu in zip(run(name, batch), run(name, moved), strict=True):
        torch.testing.assert_close(cpu, gpu.cpu(), atol=1e-9, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", [m.value for m in Aggregation])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_a_gpu_are_those_of_the_cpu(name, mode):
    inputs = loss_inputs(7)
    fields = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    moved = PolicyLossInputs(**{k: v.cuda() for k, v in fields.items()})
    cpu = total(name, inputs, loss_weights(inputs.loss_mask, mode, divisor=7.0))
    gpu = total(name, moved, loss_weights(moved.loss_mask, mode, divisor=7.0))
    torch.testing.assert_close(cpu, gpu.cpu(), atol=1e-9, rtol=1e-9)
