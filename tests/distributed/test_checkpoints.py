"""Checkpoints of several ranks: whole or not there, for any number of processes, exact."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from full_disk import a_disk_that_is_full_after
from safetensors.torch import load_file

from agent_r1.errors import CheckpointError, ModelError
from agent_r1.models.export import export_model
from agent_r1.models.load import load_model, save_model
from agent_r1.trainer.checkpoint import CheckpointStore, load_state, step_of, whole_state

from . import cases
from .cases import Case, largest_difference
from .crew import Crew

GAE = Case(algorithm={"adv_estimator": "gae"}, tied=False)
TIED = Case(actor={"ppo_mini_batch_size": 2})
LORA = Case(lora=True)
CASES = {"critic, untied": GAE, "tied": TIED, "adapters": LORA}


def quick(*names):
    """All cases, of which these run each time and the others with ``-m slow``."""
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in CASES]


def whole(path):
    return whole_state(load_state(path), path)["worker"]


def trained_and_saved(case, worker, folder):
    """Two steps and a checkpoint; the metrics of a third, and the state after it."""
    cases.train(case, worker, 2)
    path = cases.checkpoint(worker, folder)
    after = cases.train(case, worker, 1, first=2)
    return path, after, cases.state_of(worker)


def continued(case, worker, path, folder):
    """Restored and saved once more, then the third step."""
    worker.restore(path, load_state(path)["worker"])
    again = cases.checkpoint(worker, folder)
    after = cases.train(case, worker, 1, first=2)
    return whole(again), after, cases.state_of(worker)


def by_ranks(ranks, case, function, *arguments):
    return cases.together(ranks, case, function, *arguments)


def without_imbalance(metrics):
    return [{k: v for k, v in step.items() if k != "perf/token_imbalance"} for step in metrics]


def assert_continues(saved, restored, tolerance):
    path, after, state = saved
    again, after_too, state_too = restored
    assert largest_difference(whole(path), again) == 0.0
    apart = largest_difference(without_imbalance(after), without_imbalance(after_too))
    assert apart <= tolerance
    assert largest_difference(state, state_too) <= tolerance
    assert largest_difference(state["actor"]["module"], again["actor"]["module"]) > 1e-4


@pytest.mark.parametrize("name", quick("critic, untied"))
def test_one_process_continues_what_two_ranks_saved(two, tmp_path, name):
    case = CASES[name]
    saved = two.run(by_ranks, case, trained_and_saved, tmp_path / "two")[0]
    found = continued(case, cases.one_process(case), saved[0], tmp_path / "one")
    assert_continues(saved, found, 1e-5)


@pytest.mark.parametrize("name", quick("adapters"))
def test_two_ranks_continue_what_one_process_saved(two, tmp_path, name):
    case = CASES[name]
    saved = trained_and_saved(case, cases.one_process(case), tmp_path / "one")
    found = two.run(by_ranks, case, continued, saved[0], tmp_path / "two")[0]
    assert_continues(saved, found, 1e-5)


def test_as_many_ranks_continue_to_the_last_bit(two, tmp_path):
    saved = two.run(by_ranks, GAE, trained_and_saved, tmp_path / "one")[0]
    found = two.run(by_ranks, GAE, continued, saved[0], tmp_path / "two")[0]
    assert_continues(saved, found, 0.0)


@pytest.fixture(scope="module", params=[1, 3])
def crew(request):
    made = Crew(request.param)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_ranks_continues_what_two_saved(two, crew, tmp_path, name):
    case = CASES[name]
    saved = two.run(by_ranks, case, trained_and_saved, tmp_path / "two")[0]
    found = crew.run(by_ranks, case, continued, saved[0], tmp_path / "other")[0]
    assert_continues(saved, found, 1e-5)


# --- written beside training, whole or not there -----------------------------------------


def overtaken(case, worker, folder):
    """A snapshot that is overtaken by an update before it has become a checkpoint."""
    before = cases.state_of(worker)
    store = CheckpointStore(Path(folder))
    snapshot = worker.snapshot(store.begin(1))
    cases.train(case, worker, 1)
    assert not store.list()
    draft = Path(folder) / ".writing-step-000001"
    store.finish_later(draft, {"worker": snapshot.state}, snapshot.written, None)
    store.wait()
    return largest_difference(before, whole(store.latest()))


def test_training_goes_on_while_a_checkpoint_is_written(two, tmp_path):
    assert two.run(by_ranks, TIED, overtaken, tmp_path)[0] == 0.0


def on_a_full_disk(ranks, case, full_rank, folder):
    """Three checkpoints, of which a rank's disk takes no more in the middle of the second."""
    own, leader = cases.of_ranks(case, ranks)
    told = []
    if leader is not None:
        cases.checkpoint(leader, folder)
        ranks.let_go()
    else:
        own.serve(cases.TIMEOUT_S)
    size = 20_000 if ranks.rank == full_rank else 1 << 30
    with a_disk_that_is_full_after(size):
        if leader is None:
            own.serve(cases.TIMEOUT_S)
        else:
            try:
                cases.checkpoint(leader, folder)
            except CheckpointError as error:
                told.append(str(error))
            told.append(sorted(path.name for path in Path(folder).iterdir()))
            ranks.let_go()
    if leader is None:
        own.serve(cases.TIMEOUT_S)
        return None
    cases.checkpoint(leader, folder)
    ranks.let_go()
    return told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_rank_leaves_what_was_finished(two, tmp_path, rank):
    told, left = two.run(on_a_full_disk, TIED, rank, tmp_path)[0]
    assert left == ["step-000001"]
    assert re.search(rf"rank {rank}: .*step-000001 is untouched.*Free some disk space", told)
    assert [step_of(path) for path in CheckpointStore(tmp_path).list()] == [1, 2]
    whole(CheckpointStore(tmp_path).latest())


def refused(ranks, case, path):
    try:
        by_ranks(ranks, case, continued, path, path)
    except CheckpointError as error:
        return str(error)
    return None


def test_a_checkpoint_with_a_lost_file_is_refused_by_any_number_of_processes(two, tmp_path):
    path = two.run(by_ranks, TIED, trained_and_saved, tmp_path)[0][0]
    next((path / "shards").glob("__1_*.distcp")).unlink()
    with pytest.raises(CheckpointError, match=r"shards.*resume_mode"):
        whole(path)
    for told in two.run(refused, TIED, path):
        assert "cannot read" in told and "__1_0.distcp" in told


SAVE_FOR_EVER = """
import sys
from distributed import cases
from distributed.crew import Crew

def for_ever(case, worker, folder):
    step = 0
    while True:
        step += 1
        cases.train(case, worker, 1, first=step)
        cases.checkpoint(worker, folder)
        print(step, flush=True)

def run(ranks, folder):
    return cases.together(ranks, cases.Case(), for_ever, folder)

if __name__ == "__main__":
    crew = Crew(2)
    print("pids", *crew.pids, flush=True)
    crew.run(run, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killing_a_rank_at_any_moment_leaves_whole_checkpoints_only(tmp_path, victim):
    script = tmp_path / "for_ever.py"
    script.write_text(SAVE_FOR_EVER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, script, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as writer:
            pids = [int(pid) for pid in writer.stdout.readline().split()[1:]]
            while (line := writer.stdout.readline().strip()) not in ("2", ""):
                pass
            assert line
            time.sleep(0.07 * attempt)
            os.kill(pids[victim], signal.SIGKILL)
            assert writer.wait(60) != 0
        found = CheckpointStore(folder).list()
        assert len(found) >= 2
        for path in found:
            assert whole(path)["actor"]["steps"] == step_of(path)


# --- the policy's folder ------------------------------------------------------------------


def exported(case, worker, folder):
    """A trained policy's checkpoint with its folder, and the folder of the policy itself."""
    cases.train(case, worker, 1)
    path = cases.checkpoint(worker, folder)
    worker.export_from(path)
    worker.export(path / "now")
    return path


@pytest.mark.parametrize("name", quick("tied", "adapters"))
def test_the_policy_of_a_sharded_checkpoint_is_a_model_folder(two, tmp_path, name):
    case = CASES[name]
    path = two.run(by_ranks, case, exported, tmp_path / "ranks")[0]
    alone = cases.one_process(case)
    cases.train(case, alone, 1)
    alone.export(tmp_path / "alone")
    found, now, expected = (
        load_file(folder / "model.safetensors")
        for folder in (path / "policy", path / "now", tmp_path / "alone")
    )
    assert largest_difference(found, now) == 0.0
    assert largest_difference(found, expected) <= 1e-5
    load_model(path / "policy")
    assert (path / "policy/adapter").is_dir() == case.lora
    base = None
    if case.lora:
        with pytest.raises(ModelError, match=r"--base FOLDER"):
            export_model(path / "shards", tmp_path / "out")
        base = save_model(cases.network(case, 0), None, tmp_path / "base")
    out = export_model(path / "shards", tmp_path / "out", base=base)
    assert largest_difference(load_file(out / "model.safetensors"), found) == 0.0
    described = json.loads((out / "config.json").read_text())
    assert described["tie_word_embeddings"] == case.tied
    assert torch.equal(
        load_model(out).get_input_embeddings().weight, found["model.embed_tokens.weight"]
    )
