"""Virtual time, waves and slots, without a model."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_r1.rollout.engines.embedded_schedule import Phase, Request, Schedule, Tracked, Verdict
from agent_r1.rollout.engines.embedded_slots import PrefixIndex, SlotTable
from agent_r1.rollout.prefixes import common_prefix
from agent_r1.types import SamplingParams


def _request() -> Request:
    return Request([1, 2, 3], SamplingParams(4), 4, reply=None)


def _schedule(**options: Any) -> Schedule:
    return Schedule(**{"deterministic": True, "readmit_after": 5, **options})


def _start(schedule: Schedule, *names: str) -> list[Tracked]:
    """Announce, submit and admit a wave."""
    schedule.open(names)
    for name in names:
        schedule.submit(name, _request())
    assert schedule.poll() is Verdict.RUN
    admitted = schedule.ready()
    for sequence in admitted:
        sequence.phase = Phase.DECODE
    return admitted


def test_a_wave_starts_when_every_member_has_submitted_or_is_released() -> None:
    schedule = _schedule()
    schedule.open(["a", "b", "c"])
    assert schedule.poll() is Verdict.IDLE
    schedule.submit("c", _request())
    schedule.submit("a", _request())
    assert schedule.poll() is Verdict.BLOCKED
    assert schedule.ready() == []
    schedule.release("b")
    assert schedule.poll() is Verdict.RUN
    assert [s.id for s in schedule.ready()] == ["a", "c"]


def test_a_sequence_rejoins_at_its_step_and_is_waited_for_there() -> None:
    schedule = _schedule()
    first, _ = _start(schedule, "a", "b")
    schedule.turn_over(first)
    schedule.step += 1
    schedule.submit("a", _request())
    for _ in range(4):
        assert schedule.poll() is Verdict.RUN
        assert schedule.ready() == []
        schedule.step += 1
    assert schedule.poll() is Verdict.RUN
    assert [s.id for s in schedule.ready()] == ["a"]


def test_sequences_that_return_share_a_step_where_prompts_are_dear() -> None:
    schedule = _schedule(readmit_every=4)
    first, second = _start(schedule, "a", "b")
    schedule.step = 2
    schedule.turn_over(first)
    assert first.due == 8  # 7, rounded up
    schedule.step = 3
    schedule.turn_over(second)
    assert second.due == 8
    schedule.submit("a", _request())
    schedule.submit("b", _request())
    assert schedule.poll() is Verdict.RUN
    assert schedule.step == 8
    assert [s.id for s in schedule.ready()] == ["a", "b"]


def test_the_engine_waits_at_the_due_step_for_whoever_has_not_come() -> None:
    schedule = _schedule()
    first, _ = _start(schedule, "a", "b")
    schedule.turn_over(first)
    schedule.step += 5
    assert schedule.poll() is Verdict.BLOCKED
    schedule.submit("a", _request())
    assert schedule.poll() is Verdict.RUN


def test_time_jumps_when_nothing_is_left_to_compute() -> None:
    schedule = _schedule()
    first, second = _start(schedule, "a", "b")
    schedule.turn_over(first)
    schedule.step += 2
    schedule.turn_over(second)
    schedule.submit("b", _request())
    assert schedule.poll() is Verdict.BLOCKED  # "a" is due first
    assert schedule.step == 5
    schedule.submit("a", _request())
    assert schedule.poll() is Verdict.RUN
    assert [s.id for s in schedule.ready()] == ["a"]


def test_a_release_takes_effect_at_the_due_step() -> None:
    schedule = _schedule()
    first, _ = _start(schedule, "a", "b")
    schedule.turn_over(first)
    assert schedule.release("a") is None
    schedule.step += 4
    assert (schedule.poll(), schedule.gone()) == (Verdict.RUN, [])
    schedule.step += 1
    assert (schedule.poll(), schedule.gone()) == (Verdict.RUN, [first])


def test_the_next_wave_starts_from_the_same_state_however_early_releases_came() -> None:
    steps = []
    for early in (True, False):
        schedule = _schedule()
        first, second = _start(schedule, "a", "b")
        schedule.turn_over(first)
        schedule.step += 3
        schedule.turn_over(second)
        if not early:
            schedule.poll()  # time reaches the steps at which both are due
            schedule.release("a")
            schedule.poll()
        schedule.release("a")
        schedule.release("b")
        schedule.open(["c"])
        schedule.submit("c", _request())
        assert schedule.poll() is Verdict.RUN
        schedule.gone()
        assert [s.id for s in schedule] == ["c"]
        steps.append(schedule.step)
    assert steps[0] == steps[1] == 8


def test_giving_up_lets_the_others_go_on() -> None:
    schedule = _schedule()
    schedule.open(["a", "b"])
    schedule.submit("a", _request())
    assert schedule.poll() is Verdict.BLOCKED
    assert schedule.give_up() == ["b"]
    assert schedule.poll() is Verdict.RUN
    assert [s.id for s in schedule.ready()] == ["a"]
    assert schedule.late == 1
    schedule.submit("b", _request())
    assert [s.id for s in schedule.ready()] == ["a", "b"]


def test_without_determinism_everybody_joins_on_arrival() -> None:
    schedule = _schedule(deterministic=False)
    schedule.open(["a", "b"])
    schedule.submit("a", _request())
    assert schedule.poll() is Verdict.RUN
    (first,) = schedule.ready()
    first.phase = Phase.DECODE
    schedule.turn_over(first)
    assert schedule.poll() is Verdict.IDLE
    schedule.submit("a", _request())
    assert [s.id for s in schedule.ready()] == ["a"]


def _tracked(order: int, phase: Phase = Phase.PREFILL, **fields: Any) -> Tracked:
    return Tracked(f"r{order}", order, False, phase=phase, **fields)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_rows_stay_dense_and_contents_follow_their_sequences(seed: int, limit: int) -> None:
    """Random lives; a model of the cache's contents is moved as the table says."""
    source, table = random.Random(seed), SlotTable(limit)
    contents: dict[int, str] = {}
    everybody = [_tracked(i) for i in range(10)]
    for step in range(40):
        entrants = []
        for sequence in source.sample(everybody, 3):
            sequence.used = step
            if sequence.phase is Phase.DECODE:
                sequence.phase = Phase.AWAY
            elif sequence.slot is None or sequence.phase is Phase.AWAY:
                sequence.phase = Phase.QUEUED
                if not table.admit(sequence, step):
                    continue
                assert sequence.slot is not None
                contents[sequence.slot] = sequence.id
                sequence.phase = Phase.PREFILL
                entrants.append(sequence)
        entrants = [s for s in entrants if s.slot is not None]
        before = dict(contents)
        moves = table.arrange(entrants)
        for sequence in entrants:
            sequence.phase = Phase.DECODE
        for _, old, new in moves:
            contents[new] = before[old]
        assert [row.slot for row in table.rows] == list(range(len(table.rows)))
        assert {s.id for s in table.rows} == {s.id for s in everybody if s.phase is Phase.DECODE}
        held = [s for s in everybody if s.slot is not None]
        assert len({s.slot for s in held}) == len(held) <= limit
        assert all(contents[s.slot] == s.id for s in held if s.slot is not None)


def _idle_table(used: list[int], **fields: Any) -> tuple[SlotTable, list[Tracked]]:
    table = SlotTable(len(used))
    idle = [_tracked(i, used=step, **fields) for i, step in enumerate(used)]
    for sequence in idle:
        assert table.admit(sequence, sequence.used)
        sequence.phase, sequence.computed = Phase.AWAY, 9
    return table, idle


def test_the_least_recently_active_idle_sequence_is_evicted() -> None:
    table, idle = _idle_table([7, 3, 3])
    newcomer = _tracked(3)
    assert table.admit(newcomer, 8)
    assert newcomer.slot == 1
    assert [s.slot for s in idle] == [0, None, 2]
    assert (idle[1].computed, table.evictions) == (0, 1)
    for sequence in idle:
        sequence.phase = Phase.PREFILL
    assert not table.admit(_tracked(4), 100)


def test_while_others_work_a_sequence_keeps_its_slot_for_some_steps() -> None:
    table, idle = _idle_table([3, 0])
    idle[1].phase = Phase.DECODE
    assert not table.admit(_tracked(2), 3 + 15)
    assert table.admit(_tracked(2), 3 + 16) and idle[0].slot is None


@pytest.mark.parametrize("kept", [{"awaited": True}, {"released": True}])
def test_a_sequence_that_is_due_at_a_known_step_is_never_evicted(kept: dict[str, bool]) -> None:
    table, idle = _idle_table([3, 0])
    for name, value in kept.items():
        setattr(idle[0], name, value)
    assert table.admit(_tracked(2), 1000)
    assert idle[0].slot == 0 and idle[1].slot is None
    assert not table.admit(_tracked(3), 2000)


def test_prefixes_are_found_by_block_and_by_whole_prompt() -> None:
    index = PrefixIndex()
    first = _tracked(0, tokens=list(range(40)), slot=0)
    index.add(first)
    assert index.find(_tracked(1, tokens=list(range(40)))) == (first, 39)
    assert index.find(_tracked(2, tokens=[*range(35), 99, 98])) == (first, 35)
    assert index.find(_tracked(3, tokens=[*range(10), 99])) is None
    first.phase, first.computed = Phase.AWAY, 20
    assert index.find(_tracked(4, tokens=list(range(40)))) == (first, 20)
    first.slot = None
    assert index.find(_tracked(5, tokens=list(range(40)))) is None
    index.remove(first)
    first.slot = 0
    assert index.find(_tracked(6, tokens=list(range(40)))) is None


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4], 3) == 2
    assert common_prefix([1, 2, 3], [1, 2, 3, 4], 9) == 3
    assert common_prefix([1, 2, 3], [1, 2, 3], 2) == 2
    assert common_prefix([], [1], 5) == 0
    assert (common_prefix("user: a", "user: b"), common_prefix("", "x")) == (6, 0)
