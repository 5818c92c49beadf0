"""What an update saw of each token, against what the networks say when they are asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agent_r1.trainer.credit import Credit
from agent_r1.trainer.seen import Seen, token_records

from .test_worker import advantages_of, make_batch, trajectories, worker


@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("budget", [64, 100_000])
def test_log_probabilities_are_those_before_the_update(groups, budget):
    batch = make_batch()
    subject = worker(ppo_mini_batch_size=groups, ppo_max_token_len_per_gpu=budget, ppo_epochs=2)
    before = subject.logprobs(batch)
    subject.update_policy(batch, None, advantages_of(batch))
    seen, mask = subject.seen, batch.loss_mask
    assert bool(seen.has_logprobs.all()) and bool(seen.has_entropies.all())
    assert torch.allclose(seen.logprobs[mask], before[mask], atol=1e-5)
    assert bool((seen.entropies[mask] > 0).all())
    assert not torch.allclose(seen.logprobs[mask], subject.logprobs(batch)[mask], atol=1e-5)


def test_of_given_log_probabilities_only_the_first_mini_batch_is_the_trainers_own():
    batch = make_batch()
    subject = worker(ppo_mini_batch_size=1)
    before = subject.logprobs(batch)
    subject.update_policy(batch, before, advantages_of(batch))
    seen = subject.seen
    first = seen.has_logprobs
    assert len(set(batch.group_id[first].tolist())) == 1 < len(set(batch.group_id.tolist()))
    mask = batch.loss_mask & first[:, None]
    assert torch.allclose(seen.logprobs[mask], before[mask], atol=1e-5)
    assert bool(seen.has_entropies.all())


def credit(batch, advantages=None):
    worth = torch.zeros(batch.token_ids.shape) if advantages is None else advantages
    return Credit(batch, None, worth, None, None, {})


class Two:
    """Two ranks: this one, and one that saw ``other``."""

    count = 2

    def __init__(self, other):
        own = [other.logprobs * other.has_logprobs[:, None], other.has_logprobs.float()]
        self.queue = [*own, other.entropies, other.has_entropies.float()]

    def add(self, tensor):
        return tensor + self.queue.pop(0)


def test_the_rows_of_all_ranks_are_put_together():
    yes, no = torch.tensor([True, False]), torch.tensor([False, True])
    both, logprobs = torch.tensor([True, True]), torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    entropies = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mine = Seen(logprobs, both, entropies * yes[:, None], yes)
    other = Seen(logprobs, both, entropies * no[:, None], no)
    whole = mine.merged(Two(other), torch.device("cpu"))
    assert torch.equal(whole.logprobs, logprobs) and torch.equal(whole.entropies, entropies)
    assert bool(whole.has_logprobs.all()) and bool(whole.has_entropies.all())


def test_records_have_a_number_for_each_token_that_the_model_wrote():
    told = trajectories()
    batch = make_batch()
    advantages = torch.arange(batch.token_ids.numel()).reshape(batch.token_ids.shape).float()
    trained = batch.loss_mask.clone()
    trained[0] = False
    worth = credit(replace(batch, loss_mask=trained), advantages)
    trainer = batch.behavior_logprobs - 0.25
    records = token_records(told, batch, worth, trainer, None)
    assert list(records.ids) == [t.id for t in told]
    row = start = 0
    for count, trajectory in zip(records.counts, told, strict=True):
        rows = range(row, row + len(list(trajectory.samples())))
        row = rows.stop
        wanted = torch.cat([advantages[r][batch.loss_mask[r]] for r in rows]).numpy()
        if 0 in rows:
            wanted[: int(batch.loss_mask[0].sum())] = np.nan
        assert count == len(wanted)
        mine = records.advantages[start : start + count]
        assert np.array_equal(mine, wanted, equal_nan=True)
        start += count
    assert start == len(records.advantages)
    assert np.allclose(records.differences, 0.25, atol=1e-6)
    assert np.isnan(records.entropies).all()


def test_a_trajectory_without_turns_has_no_numbers():
    told = trajectories()
    batch = make_batch()
    empty = replace(told[0], turns=(), group_id="empty")
    worth = credit(batch, advantages_of(batch))
    records = token_records([empty, *told], batch, worth, None, None)
    assert records.counts[0] == 0 and records.ids[1] == told[0].id


def test_what_was_not_trained_on_was_not_seen():
    told, batch = trajectories(), make_batch()
    trained = batch.loss_mask.clone()
    trained[:, ::2] = False
    seen = Seen.nothing(batch)
    seen.know(batch.behavior_logprobs)
    records = token_records(told, batch, credit(replace(batch, loss_mask=trained)), None, seen)
    assert np.array_equal(np.isnan(records.differences), ~trained[batch.loss_mask].numpy())
    assert np.isnan(records.entropies).all()
