"""The local worker: what splits and packing must not change, and what it must survive."""

import copy
import dataclasses
import io
import itertools
import math
import random

import pytest
import torch

from agent_r1.config.policy import ActorConfig, CriticConfig, OptimConfig
from agent_r1.data.batch import Batch
from agent_r1.errors import ConfigError
from agent_r1.models.load import enable_packing
from agent_r1.models.value import ValueModel
from agent_r1.testing import make_trajectory, tiny_model
from agent_r1.trainer.worker import LocalWorker, optimizer_steps
from agent_r1.types import Reward


def words(draw, low, high):
    return "".join(chr(draw.randint(97, 122)) for _ in range(draw.randint(low, high)))


def trajectories(groups=4, n=3, seed=0):
    """Siblings of one prompt each, with a tool answer between two model turns."""
    draw = random.Random(seed)
    made = []
    for group in range(groups):
        prompt = words(draw, 4, 12)
        for index in range(n):
            turns = [(words(draw, 1, 12), words(draw, 1, 6)), words(draw, 1, 9)]
            trajectory = make_trajectory(turns, prompt=prompt)
            made.append(
                dataclasses.replace(
                    trajectory, group_id=str(group), index=index, reward=Reward(draw.random())
                )
            )
    return made


def cut_history(trajectory):
    """The same episode in two segments, as if the environment had edited history."""
    second = dataclasses.replace(trajectory.turns[1], prompt_ids=(65, 66, 67))
    return dataclasses.replace(trajectory, turns=(trajectory.turns[0], second))


def make_batch(**options):
    return Batch.from_trajectories(trajectories(**options), 0)


def advantages_of(batch):
    noise = torch.randn(len(batch), 1, generator=torch.Generator().manual_seed(1))
    return noise * batch.loss_mask


def model(seed=0, dtype=torch.float32):
    made = tiny_model(seed=seed).to(dtype)
    enable_packing(made)
    return made


def worker(policy=None, critic=None, optim=None, **actor):
    config = ActorConfig(optim=OptimConfig(lr=1e-3, **(optim or {})), **actor)
    return LocalWorker(
        policy or model(),
        config,
        total_steps=20,
        loss_divisor=64,
        reference=model(seed=1),
        critic=critic,
        critic_config=CriticConfig(optim=OptimConfig(lr=1e-3)),
    )


def weights(subject):
    module = subject.policy if isinstance(subject, LocalWorker) else subject
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def one_update(batch, **actor):
    subject = worker(**actor)
    old = subject.logprobs(batch)
    metrics = subject.update_policy(
        batch, old + 0.1 * batch.loss_mask, advantages_of(batch), subject.ref_logprobs(batch)
    )
    return subject, metrics


# --- what must not change anything ---------------------------------------------------


def test_log_probabilities_are_zero_outside_the_mask_and_ignore_the_split():
    batch = make_batch()
    whole = worker().logprobs(batch)
    split = worker(ppo_max_token_len_per_gpu=40).logprobs(batch)
    assert whole[~batch.loss_mask].abs().max() == 0
    assert whole[batch.loss_mask].max() < 0
    torch.testing.assert_close(whole, split, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
)
def test_one_update_does_not_depend_on_how_it_is_split(mode):
    """Gradients are compared through plain steps of a size that shows 1e-6 of them."""
    batch = make_batch()
    options = {
        "loss_agg_mode": mode,
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "entropy_coeff": 0.01,
        "optim": {"eps": 1.0},  # AdamW is then nearly a plain step, linear in the gradient
        "grad_clip": 1e9,
    }
    before = weights(worker())
    whole, metrics = one_update(batch, **options)
    step = (weights(whole) - before).abs().max()
    for budget in (20, 50, 90):
        split, again = one_update(batch, ppo_max_token_len_per_gpu=budget, **options)
        assert (weights(split) - weights(whole)).abs().max() <= 1e-6
        assert (weights(split) - weights(whole)).abs().max() <= 1e-3 * step
        for name in metrics:
            assert math.isclose(metrics[name], again[name], rel_tol=1e-4, abs_tol=1e-6), name


def test_order_and_padding_rows_change_nothing():
    batch = make_batch()
    whole, metrics = one_update(batch)
    shuffled = batch.select(torch.randperm(len(batch), generator=torch.Generator().manual_seed(3)))
    order = [int((batch.trajectory_id == i).nonzero()) for i in shuffled.trajectory_id.tolist()]
    subject = worker()
    subject.update_policy(
        shuffled.padded(20),
        torch.nn.functional.pad(
            subject.logprobs(shuffled) + 0.1 * shuffled.loss_mask, (0, 0, 0, 20 - len(batch))
        ),
        torch.nn.functional.pad(advantages_of(batch)[order], (0, 0, 0, 20 - len(batch))),
    )
    assert (weights(subject) - weights(whole)).abs().max() < 1e-5
    assert metrics["actor/updates"] == 1


def test_what_is_masked_reaches_neither_weights_nor_metrics():
    batch = make_batch()
    subject, metrics = one_update(batch)
    garbage = torch.where(batch.loss_mask, 0.0, math.nan)
    again = worker()
    old = again.logprobs(batch) + 0.1 * batch.loss_mask
    result = again.update_policy(batch, old + garbage, advantages_of(batch) + garbage)
    assert torch.equal(weights(subject), weights(again))
    assert result["actor/pg_loss"] == metrics["actor/pg_loss"]


def test_the_number_of_steps_counts_groups_and_not_rows():
    whole = trajectories(groups=4, n=2)
    cut = [cut_history(t) for t in whole]
    for made in (whole, cut):
        batch = Batch.from_trajectories(made, 0)
        subject = worker(ppo_mini_batch_size=3, ppo_epochs=2)
        metrics = subject.update_policy(batch, None, advantages_of(batch))
        assert metrics["actor/updates"] == 4 == optimizer_steps(1, 4, 3, 2)
    assert len(Batch.from_trajectories(cut, 0)) == 2 * len(whole)


def test_a_mini_batch_holds_whole_groups():
    batch = make_batch(groups=4, n=3)
    subject = worker(ppo_mini_batch_size=2)
    plans = [subject._plan(batch, 2, 3)]
    for rows in itertools.chain(*plans):
        sizes = torch.bincount(batch.group_id[rows], minlength=4)
        assert sorted(sizes.tolist()) == [0, 0, 3, 3]


# --- meaning ---------------------------------------------------------------------------


def test_the_update_raises_what_was_good_and_lowers_what_was_bad():
    batch = make_batch()
    subject = worker()
    before = subject.logprobs(batch)
    good = torch.arange(len(batch)) % 2 == 0
    advantages = torch.where(good, 1.0, -1.0)[:, None] * batch.loss_mask
    for _ in range(3):
        subject.update_policy(batch, None, advantages)
    change = (subject.logprobs(batch) - before).sum(1)
    assert change[good].min() > 0 > change[~good].max()


def test_old_log_probabilities_left_out_are_those_of_the_policy():
    batch = make_batch()
    for steps in ({}, {"ppo_epochs": 2}):
        given, left_out = worker(**steps), worker(**steps)
        given.update_policy(batch, given.logprobs(batch), advantages_of(batch))
        metrics = left_out.update_policy(batch, None, advantages_of(batch))
        assert (weights(given) - weights(left_out)).abs().max() < 1e-6
        assert metrics["actor/ratio_max"] >= 1.0


def test_temperature_reaches_the_log_probabilities():
    batch = make_batch()
    hot = LocalWorker(model(), ActorConfig(), temperature=2.0)
    cold = LocalWorker(model(), ActorConfig(), temperature=1.0)
    spread = [w.logprobs(batch)[batch.loss_mask].std() for w in (hot, cold)]
    assert spread[0] < 0.7 * spread[1]


def test_metrics_carry_the_names_of_the_field():
    batch = make_batch()
    _, metrics = one_update(batch, use_kl_loss=True)
    expected = {"pg_loss", "pg_clipfrac", "ppo_kl", "grad_norm", "lr", "entropy", "kl_loss"}
    assert {f"actor/{name}" for name in expected} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert math.isclose(metrics["actor/ppo_kl"], 0.1, abs_tol=1e-5)
    assert 0 < metrics["actor/entropy"] < math.log(264)


def test_bounds_that_nobody_set_are_those_of_the_loss():
    batch = make_batch()
    narrow, _ = one_update(batch, policy_loss={"loss_mode": "gspo"})
    wide, _ = one_update(batch, policy_loss={"loss_mode": "gspo"}, clip_ratio=5.0)
    assert (weights(narrow) - weights(wide)).abs().max() > 0


def test_what_is_missing_is_named():
    batch = make_batch()
    bare = LocalWorker(model(), ActorConfig(use_kl_loss=True))
    with pytest.raises(ConfigError, match="reference"):
        bare.ref_logprobs(batch)
    with pytest.raises(ConfigError, match="use_kl_loss"):
        bare.update_policy(batch, None, advantages_of(batch))
    with pytest.raises(ConfigError, match="critic"):
        bare.values(batch)


# --- survival --------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(poison):
    batch = make_batch()
    subject = worker()
    before = weights(subject)
    advantages = advantages_of(batch)
    advantages[2] = torch.where(batch.loss_mask[2], poison, 0.0)
    metrics = subject.update_policy(batch, None, advantages)
    assert torch.equal(weights(subject), before)
    assert metrics["actor/skipped_updates"] == 1 and metrics["actor/updates"] == 0
    after = subject.update_policy(batch, None, advantages_of(batch))
    untouched = worker()
    untouched.update_policy(batch, None, advantages_of(batch))
    assert after["actor/updates"] == 1
    assert torch.equal(weights(subject), weights(untouched))


def test_only_the_poisoned_mini_batch_is_lost():
    batch = make_batch(groups=4)
    advantages = advantages_of(batch)
    advantages[0] = math.nan
    subject = worker(ppo_mini_batch_size=1)
    metrics = subject.update_policy(batch, None, advantages)
    assert (metrics["actor/updates"], metrics["actor/skipped_updates"]) == (3, 1)
    assert weights(subject).isfinite().all()


def test_gradients_are_clipped_to_the_configured_norm():
    batch = make_batch()
    optim = {"eps": 1.0, "weight_decay": 0.0}  # then |step| is about lr * |gradient|
    moved = {}
    for clip in (1e9, 0.1):
        subject = worker(grad_clip=clip, optim=optim)
        before = weights(subject)
        metrics = subject.update_policy(batch, None, 10 * advantages_of(batch))
        assert metrics["actor/grad_norm"] > 1
        moved[clip] = (weights(subject) - before).norm()
    assert moved[0.1] <= 1.01 * 1e-3 * 0.1 < 0.2 * moved[1e9]


def test_a_batch_with_nothing_to_train_on_changes_nothing():
    batch = make_batch()
    batch = dataclasses.replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    subject = worker(critic=ValueModel(model(2)))
    before = weights(subject)
    metrics = subject.update_policy(batch, None, torch.zeros_like(batch.behavior_logprobs))
    assert metrics["actor/updates"] == 0
    assert torch.equal(weights(subject), before)
    zeros = torch.zeros_like(batch.behavior_logprobs)
    assert subject.update_critic(batch, zeros, zeros)["critic/updates"] == 0


def test_bfloat16_weights_follow_updates_too_small_for_them():
    batch = make_batch()
    policy = model(dtype=torch.bfloat16)
    subject = worker(policy)
    before = weights(subject)
    for _ in range(3):
        subject.update_policy(batch, None, advantages_of(batch))
    state = subject.state_dict()["actor"]
    assert policy.get_input_embeddings().weight.dtype == torch.bfloat16
    master = torch.cat([t.flatten() for t in state["master"].values()])
    assert master.dtype == torch.float32
    assert not torch.equal(weights(subject), before)
    assert (master.bfloat16().float() - master).abs().max() > 0


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_autocast_trains_in_its_type_and_keeps_float32_weights(autocast):
    batch = make_batch()
    exact, _ = one_update(batch)
    subject, metrics = one_update(batch, autocast=autocast)
    assert metrics["actor/updates"] == 1
    assert weights(subject).dtype == torch.float32
    difference = (weights(subject) - weights(exact)).abs().mean()
    assert 0 < difference < 0.5 * (weights(exact) - weights(worker())).abs().mean()


# --- critic and resume -------------------------------------------------------------------


def test_the_critic_learns_its_returns():
    batch = make_batch()
    subject = worker(critic=ValueModel(model(2)))
    returns = batch.reward[:, None] * batch.loss_mask
    losses = []
    for _ in range(30):
        old = subject.values(batch).tokens
        losses.append(subject.update_critic(batch, returns, old)["critic/vf_loss"])
    assert losses[-1] < 0.3 * losses[0]
    assert subject.values(batch).tokens[~batch.loss_mask].abs().max() == 0


def reload(state):
    """Through a file, as a checkpoint goes, executing nothing from it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optim": {"name": "muon", "lr_scheduler_type": "cosine", "lr_warmup_steps": 2}},
        {"dtype": torch.bfloat16},
        {"autocast": "float16"},
    ],
    ids=str,
)
def test_n_steps_a_restart_and_n_steps_equal_2n_steps_bit_for_bit(options):
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    batches = [make_batch(seed=seed) for seed in range(4)]

    def fresh():
        critic = ValueModel(model(2, dtype))
        return worker(model(0, dtype), critic, ppo_mini_batch_size=1, ppo_epochs=2, **options)

    def train(subject, some):
        metrics = []
        for batch in some:
            old, values = subject.logprobs(batch), subject.values(batch).tokens
            returns = batch.reward[:, None] * batch.loss_mask
            metrics.append(subject.update_critic(batch, returns, values))
            metrics.append(subject.update_policy(batch, old, advantages_of(batch)))
        return metrics

    straight, first, second = fresh(), fresh(), fresh()
    expected = train(straight, batches)
    train(first, batches[:2])
    state = reload(first.state_dict())
    for parameter in second.policy.parameters():
        parameter.data.normal_()  # nothing may survive from before the load
    second.load_state_dict(state)
    assert train(second, batches[2:]) == expected[4:]
    assert torch.equal(weights(second), weights(straight))
    assert torch.equal(second.values(batches[0]).tokens, straight.values(batches[0]).tokens)


def test_an_exported_policy_is_the_policy(tmp_path):
    from agent_r1.models.load import load_model

    subject = worker()
    batch = make_batch()
    subject.update_policy(batch, None, advantages_of(batch))
    subject.export(tmp_path / "policy")
    assert torch.equal(weights(load_model(tmp_path / "policy")), weights(subject))


def test_loading_writes_into_the_weights_that_an_engine_shares():
    subject = worker()
    shared = next(subject.policy.parameters())
    state = copy.deepcopy(subject.state_dict())
    subject.update_policy(make_batch(), None, advantages_of(make_batch()))
    moved = shared.detach().clone()
    subject.load_state_dict(state)
    assert next(subject.policy.parameters()) is shared
    assert not torch.equal(shared, moved)
