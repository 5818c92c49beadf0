"""Sampling and learning at the same time, with the embedded engine and the toy."""

import asyncio
import collections

import pytest

from agent_r1.config.task import CurriculumConfig
from agent_r1.data.loader import TaskLoader
from agent_r1.errors import EngineError, RolloutFailed
from agent_r1.monitor.records import read_stored
from agent_r1.trainer.build import build_parts, train
from agent_r1.trainer.curriculum import Curriculum
from agent_r1.trainer.publisher import WeightPublisher
from agent_r1.trainer.sampler import staleness_metrics
from agent_r1.trainer.supply import TaskSupply
from agent_r1.types import Task

from .conftest import TOY
from .test_rl import final_state, lines, run_of

OVERLAP = ["trainer.max_staleness=2", "data.val_files=[]", "trainer.total_training_steps=8"]
SLOW = "tool.env_kwargs={delay: 0.05}"


def stored(run):
    return [s for s in read_stored(run / "trajectories.jsonl") if s.split == "train"]


def trained_tokens(run):
    """Lags, in updates, of the tokens that each step stored."""
    lags = collections.defaultdict(set)
    for trajectory, step, _ in stored(run):
        for turn in trajectory.turns:
            lags[step] |= {step - 1 - version for _, version in turn.completion.versions}
    return lags


def test_sampling_goes_on_while_weights_change_and_keeps_to_the_bound(toy_config):
    run = run_of(toy_config, *OVERLAP, SLOW)
    metrics = lines(run, "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 9))
    assert all(m["async/staleness/max"] <= 2 for m in metrics)
    assert max(m["async/staleness/mean"] for m in metrics) > 0
    for m in metrics:
        shares = [v for k, v in m.items() if k.startswith("async/version_share/")]
        assert sum(shares) == pytest.approx(1)
        assert m["weights/version"] == m["step"]
    lags = trained_tokens(run)
    assert set().union(*lags.values()) <= {0, 1, 2}
    assert any(found - {0} for found in lags.values())
    # Every step trained on four whole groups of its own, none twice.
    members = collections.Counter(s.trajectory.id for s in stored(run))
    assert set(members.values()) == {1}
    groups = collections.Counter(s.trajectory.group_id for s in stored(run))
    assert len([g for g, n in groups.items() if n == 4]) >= 8 * 4


def test_the_probabilities_of_sampling_are_those_of_the_version_that_sampled(toy_config):
    """With the caches computed anew an old policy's tokens differ, the newest policy's do not."""
    run = run_of(toy_config, *OVERLAP, SLOW, "actor_rollout_ref.rollout.keep_cache=false")
    metrics = lines(run, "metrics.jsonl")
    assert metrics[0]["training/rollout_is_mean"] == pytest.approx(1, abs=1e-4)
    assert any(abs(m["training/rollout_is_mean"] - 1) > 1e-4 for m in metrics[1:])


def test_a_resumed_run_loses_no_task_and_trains_on_none_twice(toy_config):
    settings = [*OVERLAP, "data.generator_kwargs={count: 64}", "trainer.total_training_steps=16"]
    stopping = [f"tool.env={TOY}:InterruptingEnv", "tool.env_kwargs={at: '6.', delay: 0.05}"]
    stopped = toy_config(*settings, *stopping)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    run = stopped.trainer.run_dir
    owed = final_state(run)["sampler"]["supply"]["line"]
    assert owed  # groups were under way when the run was stopped
    run_of(toy_config, *settings, SLOW, "trainer.accept_changes=true")
    groups = {s.trajectory.group_id: s for s in stored(run)}
    trained = [s.trajectory.task.id for s in groups.values()]
    whole = collections.Counter(trained)
    assert set(whole.values()) == {1} and len(whole) == 64  # 16 steps of 4: each exactly once


def test_stragglers_are_dropped_and_their_tasks_sampled_again(toy_config):
    run = run_of(
        toy_config,
        *OVERLAP,
        "trainer.max_staleness=1",
        "trainer.stale=drop",
        f"tool.env={TOY}:StragglingEnv",
        "data.generator_kwargs={count: 32}",
    )
    metrics = lines(run, "metrics.jsonl")
    assert sum(m["async/cut_groups"] for m in metrics) > 0
    assert all(m["async/staleness/max"] <= 1 for m in metrics)


def test_enough_members_make_a_group_and_enough_groups_a_step(toy_config):
    run = run_of(
        toy_config,
        "data.val_files=[]",
        "actor_rollout_ref.rollout.min_group=3",
        "actor_rollout_ref.rollout.over_sampling=0.5",
        f"tool.env={TOY}:StragglingEnv",
    )
    members = collections.Counter((s.step, s.trajectory.group_id) for s in stored(run))
    for step in range(1, 5):
        sizes = [n for (at, _), n in members.items() if at == step]
        assert sizes.count(3) >= 4 and max(sizes) == 3


def test_groups_without_signal_are_replaced_from_what_is_under_way(toy_config):
    run = run_of(
        toy_config,
        *OVERLAP,
        "algorithm.filter_groups={enable: true, metric: accuracy, max_num_gen_batches: 3}",
    )
    metrics = lines(run, "metrics.jsonl")
    assert len(metrics) == 8
    assert all(m["async/flat_groups"] >= 0 for m in metrics)


def test_a_broken_environment_stops_an_overlapping_run_too(toy_config):
    with pytest.raises(RolloutFailed, match="the toy broke"):
        train(toy_config(*OVERLAP, "tool.env_kwargs={fail_on: '0'}"))


def test_the_learners_own_errors_end_the_run(toy_config):
    with pytest.raises(ZeroDivisionError):
        train(toy_config(*OVERLAP, f"algorithm.adv_estimator={TOY}:broken_estimator"))


# --- the parts ---------------------------------------------------------------------------


class Flaky:
    """An engine that takes weights only now and then."""

    def __init__(self, failing):
        self.failing = list(failing)
        self.served = []

    async def load_weights(self, source, version, *, keep_cache=False):
        if self.failing and self.failing.pop(0):
            raise EngineError("the wire broke")
        self.served.append(version)
        return 12


class Weights:
    def parameters(self):
        return []

    def checkpoint(self):
        return []


def test_a_failed_transfer_is_retried_and_the_old_version_serves_meanwhile():
    engine = Flaky([False, True, True, False])
    publisher = WeightPublisher(engine, Weights(), tolerance=1, attempts=2, pause_s=0)

    async def body():
        first = await publisher.publish(0)
        second = await publisher.publish(1)
        behind = publisher.version
        third = await publisher.publish(2)
        return first, second, behind, third

    first, second, behind, third = asyncio.run(body())
    assert (first["weights/bytes"], first["weights/failures"]) == (12, 0)
    assert (second["weights/version"], second["weights/failures"], behind) == (0, 2, 0)
    assert (third["weights/version"], engine.served) == (2, [0, 2])


def test_an_engine_that_falls_too_far_behind_ends_the_run():
    publisher = WeightPublisher(Flaky([False] + [True] * 9), Weights(), attempts=2, pause_s=0)

    async def body():
        await publisher.publish(0)
        await publisher.publish(1)

    with pytest.raises(EngineError, match=r"version 1 .* 2 attempts: the wire broke"):
        asyncio.run(body())


def test_staleness_counts_tokens():
    from dataclasses import replace

    from agent_r1.testing import make_trajectory

    made = make_trajectory(["abcd"])
    (turn,) = made.turns
    length = len(turn.completion.token_ids)
    mixed = replace(turn, completion=replace(turn.completion, versions=((0, 3), (1, 5))))
    found = staleness_metrics([replace(made, turns=(mixed,))], 5)
    assert found["async/staleness/max"] == 2
    assert found["async/staleness/mean"] == pytest.approx(2 / length)
    assert found["async/version_share/lag_2"] == pytest.approx(1 / length)
    assert found["async/version_share/lag_0"] == pytest.approx(1 - 1 / length)
    assert found["async/mixed_trajectories"] == 1


def test_solved_and_hopeless_tasks_are_sampled_more_seldom_and_noticed_when_they_change():
    config = CurriculumConfig(enable=True, keep=0.25, momentum=0.5)
    tasks = [Task(name, "p") for name in ("solved", "hopeless", "mixed")]
    memory = Curriculum(config, seed=0)
    for task, successes in zip(tasks, ([True, True], [False, False], [True, False]), strict=True):
        memory.record(task, successes)
    kept = {task.id: sum(memory.wants(task) for _ in range(400)) for task in tasks}
    assert kept["mixed"] == 400
    assert 60 < kept["solved"] < 140 and 60 < kept["hopeless"] < 140
    metrics = memory.metrics()
    assert metrics["curriculum/solved"] == metrics["curriculum/hopeless"] == pytest.approx(1 / 3)
    assert metrics["curriculum/skipped"] == pytest.approx(1 - sum(kept.values()) / 1200)
    again = Curriculum(config, seed=0)
    again.load_state_dict(memory.state_dict())
    assert [again.wants(tasks[0]) for _ in range(50)] == [memory.wants(tasks[0]) for _ in range(50)]
    memory.record(tasks[0], [False, True])  # 1 + 0.5 (0.5 - 1) = 0.75: in between again
    assert all(memory.wants(tasks[0]) for _ in range(20))


def test_a_curriculum_that_wants_nothing_is_overruled():
    config = CurriculumConfig(enable=True, keep=0.0)
    memory = Curriculum(config, seed=0)
    tasks = [Task(str(i), "p") for i in range(4)]
    for task in tasks:
        memory.record(task, [True])
    supply = TaskSupply(TaskLoader(tasks, 2, shuffle=False), memory)
    assert len(supply.take(2)) == 2


def test_tasks_that_are_owed_come_first_and_survive_a_restart():
    tasks = [Task(str(i), "p") for i in range(6)]
    supply = TaskSupply(TaskLoader(tasks, 2, shuffle=False))
    begun = supply.take(3)
    assert [t.id for t in begun] == ["0", "1", "2"]
    supply.again(begun[:1])
    state = supply.state_dict(owed=begun[1:])
    fresh = TaskSupply(TaskLoader(tasks, 2, shuffle=False))
    fresh.load_state_dict(state)
    assert [t.id for t in fresh.take(6)] == ["1", "2", "0", "3", "4", "5"]


def test_a_run_with_a_curriculum_logs_it_and_resumes(toy_config):
    settings = ["data.curriculum.enable=true", "data.curriculum.hopeless=0.5", "data.val_files=[]"]
    run = run_of(toy_config, *settings, "trainer.total_training_steps=2")
    assert lines(run, "metrics.jsonl")[-1]["curriculum/tasks"] == 8
    remembered = final_state(run)["sampler"]["curriculum"]["rates"]
    assert len(remembered) == 8
    run_of(toy_config, *settings)
    assert [m["step"] for m in lines(run, "metrics.jsonl")] == [1, 2, 3, 4]


def test_no_module_leaves_the_worker(toy_config):
    from contextlib import ExitStack

    from agent_r1.trainer.policy_worker import PolicyWorker

    assert not hasattr(PolicyWorker, "policy")
    with ExitStack() as stack:
        parts, _ = build_parts(toy_config(), stack)
        names = [name for name, _ in parts.worker.weights.checkpoint()]
        asyncio.run(parts.engine.close())
    assert "model.embed_tokens.weight" in names and len(names) == len(set(names))
