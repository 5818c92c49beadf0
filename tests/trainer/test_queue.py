"""Which groups are begun, taken and given up: worked by hand, and as properties."""

import random

import pytest

from agent_r1.rollout.group import Group
from agent_r1.testing import make_trajectory
from agent_r1.trainer.queue import Finished, Stream, Ticket, Waves, make_queue
from agent_r1.types import Task


def ticket(order, version=0):
    return Ticket(Group(Task(str(order), "p"), f"g{order}", 2), order, version)


def done(what, informative=True, version=None):
    trajectory = make_trajectory(["a"])
    if version is not None:
        completion = trajectory.turns[0].completion
        object.__setattr__(completion, "versions", ((0, version),))
    else:
        object.__setattr__(trajectory.turns[0].completion, "versions", ((0, what.version),))
    return Finished(what, (trajectory,), (trajectory,), informative)


def stream(size=2, max_staleness=1, wait=True, surplus=0, patience=0, steps=100):
    return Stream(
        size,
        max_staleness=max_staleness,
        wait=wait,
        surplus=surplus,
        patience=patience,
        steps=steps,
    )


def begin(queue, *tickets):
    for one in tickets:
        queue.begin(one)


def orders(found):
    return [f.ticket.order for f in found]


def test_a_wave_is_taken_whole_and_in_the_order_of_submission():
    queue = Waves(2, rounds=1)
    assert queue.allowance(0) == 2
    a, b = ticket(0), ticket(1)
    begin(queue, a, b)
    assert queue.allowance(0) == 0
    queue.finish(done(b))
    assert queue.take(0) is None
    queue.finish(done(a))
    assert orders(queue.take(0).chosen) == [0, 1]
    assert (queue.allowance(0), queue.allowance(1)) == (0, 2)  # the next wave is the next step's


def test_further_waves_until_enough_groups_have_signal_or_the_rounds_are_used_up():
    queue = Waves(2, rounds=2)
    begin(queue, ticket(0), ticket(1))
    queue.finish(done(ticket(0), informative=False))
    queue.finish(done(ticket(1)))
    assert queue.take(0) is None and queue.allowance(0) == 2
    begin(queue, ticket(2), ticket(3))
    queue.finish(done(ticket(3)))
    queue.finish(done(ticket(2)))
    taken = queue.take(0)
    assert (orders(taken.chosen), orders(taken.discarded), taken.again) == ([1, 2], [0, 3], [])
    begin(queue, *(ticket(i) for i in range(4)))
    for i in range(4):
        queue.finish(done(ticket(i), informative=False))
    assert orders(queue.take(1).chosen) == [0, 1]  # what there is must do


def test_a_stream_begins_no_more_than_can_be_used_in_time():
    queue = stream(size=2, max_staleness=2)
    assert queue.allowance(0) == 6
    begin(queue, *(ticket(i) for i in range(6)))
    assert queue.allowance(0) == 0
    for i in range(3):
        queue.finish(done(ticket(i)))
    assert queue.allowance(0) == 0  # finished ones are still to be used
    assert orders(queue.take(0).chosen) == [0, 1]
    assert queue.allowance(0) == 0  # while they are trained on, their places are taken
    assert queue.allowance(1) == 2


def test_towards_the_end_no_more_begin_than_will_be_used():
    queue = stream(size=2, max_staleness=2, steps=4)
    begin(queue, *(ticket(i) for i in range(6)))
    for version in range(2):
        for i in range(2 * version, 2 * version + 2):
            queue.finish(done(ticket(i)))
        queue.take(version)
    assert queue.allowance(2) == 2  # two are under way, steps 3 and 4 use four
    begin(queue, ticket(6, 2), ticket(7, 2))
    assert queue.allowance(3) == 0


def test_a_step_waits_for_what_would_be_too_old_afterwards():
    queue = stream(size=2, max_staleness=1)
    old, young = [ticket(0, 0), ticket(1, 0)], [ticket(2, 1), ticket(3, 1)]
    begin(queue, *old, *young)
    for one in [old[1], *young]:
        queue.finish(done(one))
    assert queue.take(1) is None  # ticket 0 may be used by version 1's update at the latest
    queue.finish(done(old[0]))
    assert orders(queue.take(1).chosen) == [0, 1]


def test_dropping_takes_what_is_there_and_cuts_what_would_be_too_old():
    queue = stream(size=2, max_staleness=1, wait=False)
    begin(queue, ticket(0, 0), ticket(1, 0), ticket(2, 1), ticket(3, 1))
    for i, version in ((1, 0), (2, 1)):
        queue.finish(done(ticket(i, version)))
    assert orders(queue.take(1).chosen) == [1, 2]
    assert [t.order for t in queue.overdue(1)] == [0]
    assert [t.order for t in queue.owed()] == [3]


def test_a_group_whose_tokens_are_too_old_is_sampled_again():
    queue = stream(size=1, max_staleness=1, wait=False)
    begin(queue, ticket(0, 2), ticket(1, 2))
    queue.finish(done(ticket(0, 2), version=0))  # the engine was behind when it began
    queue.finish(done(ticket(1, 2)))
    taken = queue.take(2)
    assert orders(taken.chosen) == [1]
    assert [t.order for t in taken.again] == [0]


def test_a_group_without_signal_gives_its_place_to_another_at_once():
    queue = stream(size=2, max_staleness=0, surplus=1, patience=4)
    begin(queue, *(ticket(i) for i in range(3)))
    queue.finish(done(ticket(0), informative=False))
    assert queue.allowance(0) == 1
    begin(queue, ticket(3))
    queue.finish(done(ticket(2)))
    queue.finish(done(ticket(3)))
    taken = queue.take(0)
    assert (orders(taken.chosen), orders(taken.discarded)) == ([2, 3], [0])
    assert [t.order for t in queue.overdue(0)] == [1]


def test_after_too_many_groups_without_signal_those_must_do():
    queue = stream(size=2, max_staleness=0, surplus=1, patience=2)
    begin(queue, *(ticket(i) for i in range(3)))
    queue.finish(done(ticket(0), informative=False))
    queue.finish(done(ticket(1)))
    assert queue.take(0) is None
    queue.finish(done(ticket(2), informative=False))
    assert orders(queue.take(0).chosen) == [0, 1]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_whatever_the_timing_nothing_too_old_is_trained_on_and_the_stream_never_stalls(
    wait, staleness
):
    for seed in range(20):
        rng = random.Random(seed)
        queue = stream(size=3, max_staleness=staleness, wait=wait)
        under_way, order, version, lost = [], 0, 0, 0
        while version < 40:
            for _ in range(queue.allowance(version)):
                under_way.append(ticket(order, version))
                queue.begin(under_way[-1])
                order += 1
            taken = queue.take(version)
            if taken is None:
                assert under_way, "nothing is under way and the step waits for something"
                # Stragglers: the oldest is the least likely to finish next.
                one = under_way.pop(int(len(under_way) * rng.random() ** 0.3))
                queue.finish(done(one))
                continue
            assert len(taken.chosen) == 3
            assert all(version - f.oldest <= staleness for f in taken.chosen)
            late = queue.overdue(version)
            under_way = [one for one in under_way if one not in late]
            lost += len(late) + len(taken.discarded)
            version += 1
        assert lost == 0 or not wait


def test_while_the_engine_is_behind_no_more_begin_than_the_remaining_steps_take():
    """Weights of version 1 did not reach it: what begins now still counts as version 0's."""
    queue = stream(size=2, max_staleness=2)
    begin(queue, *(ticket(i) for i in range(queue.allowance(0))))  # 6, due at version 2
    for i in range(2):
        queue.finish(done(ticket(i)))
    queue.take(0)
    assert queue.allowance(0) == 0  # version 1 and 2 take the four that are left
    for i in range(2, 4):
        queue.finish(done(ticket(i)))
    assert orders(queue.take(1).chosen) == [2, 3]
    assert queue.allowance(0) == 0  # version 2 takes the last two
    assert queue.allowance(1) == 2  # due at version 3


def test_groups_without_signal_that_nobody_needs_hold_up_no_step():
    """More of them than a step takes came in before there was patience for them."""
    queue = stream(size=2, max_staleness=1, patience=4)
    begin(queue, *(ticket(i) for i in range(4)))
    for i in range(4):
        queue.finish(done(ticket(i), informative=False))
        begin(queue, ticket(4 + i))
    for i in range(4, 8):
        queue.finish(done(ticket(i), informative=False))
    taken = queue.take(0)
    assert (orders(taken.chosen), orders(taken.discarded)) == ([0, 1], [2, 3, 4, 5, 6, 7])
    assert queue.owed() == []


def test_groups_that_are_too_old_when_they_finish_hold_no_place():
    queue = stream(size=2, max_staleness=1, wait=False)
    begin(queue, *(ticket(i, 2) for i in range(queue.allowance(2))))
    for i in range(4):
        queue.finish(done(ticket(i, 2), version=0))
    assert queue.take(2) is None
    assert queue.allowance(2) == 4
    assert [t.order for t in queue.owed()] == [0, 1, 2, 3]  # not yet reported as given up
    begin(queue, ticket(4, 2), ticket(5, 2))
    queue.finish(done(ticket(4, 2)))
    queue.finish(done(ticket(5, 2)))
    taken = queue.take(2)
    assert (orders(taken.chosen), [t.order for t in taken.again]) == ([4, 5], [0, 1, 2, 3])
    assert queue.owed() == []


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_an_engine_behind_and_groups_without_signal_never_stall_the_stream(wait, staleness):
    for seed in range(30):
        rng = random.Random(seed)
        queue = stream(size=3, max_staleness=staleness, wait=wait, patience=6, steps=40)
        under_way, order, version, served = [], 0, 0, 0
        while version < 40:
            for _ in range(queue.allowance(served)):
                under_way.append(ticket(order, served))
                queue.begin(under_way[-1])
                order += 1
            taken = queue.take(version)
            if taken is None:
                assert under_way, "nothing is under way and the step waits for something"
                one = under_way.pop(int(len(under_way) * rng.random() ** 0.3))
                queue.finish(done(one, informative=rng.random() < 0.5))
                continue
            assert len(taken.chosen) == 3
            assert all(version - f.oldest <= staleness for f in taken.chosen)
            late = queue.overdue(version)
            assert not late or not wait
            under_way = [one for one in under_way if one not in late]
            version += 1
            if rng.random() < 0.5 or version - served > staleness:
                served = version  # the other half of the publications fails
        assert order <= 40 * 3 * 8


def test_the_number_decides_which_rule_holds():
    options = {"wait": True, "rounds": 1, "steps": 9}
    assert isinstance(make_queue(2, max_staleness=0, over_sampling=0.0, **options), Waves)
    assert isinstance(make_queue(2, max_staleness=0, over_sampling=0.1, **options), Stream)
    assert isinstance(make_queue(2, max_staleness=1, over_sampling=0.0, **options), Stream)
